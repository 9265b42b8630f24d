"""Ways in which checkpoints store integer codes in ordinary tensors, one file each."""
