"""Learned mixing where other people's training loops expect Mixup: one module for each neighbour.

No module here is loaded by `import samix`, and each loads its neighbour's package only if it needs it.
"""
