"""One file per packed layout; being here is being registered (weights/format.py)."""
