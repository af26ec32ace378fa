"""Data sets: one file each, and what they share: splitting, batches, preprocessing."""
