"""The Open Inference Protocol, spoken over the same engine as our own."""
