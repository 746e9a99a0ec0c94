"""Runtime shared by the programs: configuration, logs, signals, metrics pages and shards."""
