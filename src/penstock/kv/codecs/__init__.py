"""The KV codecs. A file here is registered by being here."""
