"""WebDataset shards: index, epoch order, reading, decoding and augmenting."""
