"""The trainer: torchrun workers that train on mixed batches."""
