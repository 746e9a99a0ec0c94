"""The remote engine: channel, retries, and mixed batches several steps ahead."""
