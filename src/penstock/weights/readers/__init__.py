"""Checkpoint readers, one file each."""
