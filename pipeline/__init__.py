"""A configuration-driven pipeline that takes a float vision model to int8 by quantization-aware training."""

__version__ = "0.1.0"

import os

# torch's OpenMP threads spin at every barrier, by default for milliseconds. Beside any other process that turns a
# training several times slower; a short spin costs nothing measurable on a quiet machine (docs/sweeps.md). It has to
# be said before torch is imported, and is inherited by the processes of a parallel sweep.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
