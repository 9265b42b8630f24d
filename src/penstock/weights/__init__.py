"""Checkpoints in: readers, formats, packing. Nothing here knows a model or a kernel's insides."""
