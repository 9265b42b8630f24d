"""One file per scheduling policy; being here is being registered."""
