"""Generated from protos/samix/mixer/v1; run `make protos` to refresh it."""
