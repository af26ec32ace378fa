"""Measuring models: latency, size, sensitivity, and what the numbers can bear."""
