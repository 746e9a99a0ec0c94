"""Which mixers are here: files, versions, loading and unloading, and the service for operators."""
