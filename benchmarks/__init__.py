"""Measurements of the pipeline itself, made by hand: python -m benchmarks.<name>."""
