"""The native backend: programs lowered to one recorded segment, run in one call with the GIL released."""
