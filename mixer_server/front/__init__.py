"""What clients meet: gRPC methods and streams, and what bounds their callers."""
