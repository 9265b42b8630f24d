"""One file per KV retention; being here is being registered."""
