"""A configuration-driven pipeline that takes a float vision model to int8 by quantization-aware training."""

__version__ = "0.1.0"
