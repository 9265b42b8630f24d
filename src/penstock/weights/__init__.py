"""Checkpoints in, packed weights out: readers, formats, the loader."""
