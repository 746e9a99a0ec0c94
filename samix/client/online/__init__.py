"""The trainers' side of a co-training session."""
