"""Ready batches out of shards that the server reads itself."""
