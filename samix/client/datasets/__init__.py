"""Ready batches of datasets that a server reads: subscriptions, and what comes over them."""
