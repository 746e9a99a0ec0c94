"""Pictures of what mixers do; `samix gallery` and the quickstart write them as PNG."""
