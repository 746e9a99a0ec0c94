"""What computes: passes on CPUs and GPUs, and the decoding of pictures."""
