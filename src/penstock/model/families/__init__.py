"""One small file of data per architecture; being here is being registered in FAMILIES."""
