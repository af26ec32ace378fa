"""A configuration-driven pipeline that takes a float vision model to int8 by quantization-aware training."""

__version__ = "0.1.0"

import ctypes
import os
import sys

# torch's OpenMP threads spin at every barrier, by default for milliseconds. Beside any other process that turns a
# training several times slower; a short spin costs nothing measurable on a quiet machine (docs/sweeps.md). It has to
# be said before torch is imported, and is inherited by the processes of a parallel sweep.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# onnxruntime from 1.29 tells its maker of each model that it loads, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, for the next step of a training, instead of giving it back page by page.

    Taking some 100 MB anew from the kernel in each step costs a QAT step of a small network about a twentieth.
    """
    # Of the libraries that Linux has for this, glibc alone knows mallopt.
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


_keep_freed_memory()
