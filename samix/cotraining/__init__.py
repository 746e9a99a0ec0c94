"""What both sides of a co-training session share: its settings, and their messages."""
