"""Generated from protos/samix/inference/v2; run `make protos` to refresh it."""
