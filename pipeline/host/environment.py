"""What this machine and this checkout are, for the record and for results that depend on them."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT


@functools.cache
def cpu_name() -> str:
    """The processor's model name and the instruction set that torch uses of it."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    elif platform.system() == "Darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string") or name
    return f"{name or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def git_commit() -> str:
    """The commit of the checkout, marked `-dirty` with uncommitted changes; 'unknown' outside a checkout.

    It is that of this project, or, where this is installed from a wheel, that of the working directory.
    """
    return _output("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*") or "unknown"


def resolve_device(name: str) -> torch.device:
    """The device to train on: `auto` takes the GPU where there is one.

    Raises:
        UserError: for `cuda` where torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; allowed: auto, cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def machine() -> dict[str, str]:
    """What a measured latency depends on besides the configuration."""
    return {"cpu": cpu_name(), "torch": torch.__version__, "python": platform.python_version()}


def hardware() -> dict[str, str]:
    """What else a latency depends on: vector instructions, frequency governor, and how busy the machine is now."""
    known = torch.cpu.get_capabilities()
    names = {
        "avx2": "AVX2",
        "avx512_f": "AVX512",
        "avx512_vnni": "AVX512-VNNI",
        "avx_vnni": "AVX-VNNI",
        "amx_int8": "AMX",
    }
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu_instructions": " ".join(shown for name, shown in names.items() if known.get(name)) or "none known",
        "cpu_governor": governor.read_text().strip() if governor.exists() else "unknown",
        "load_average": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
    }


def busy_share(seconds: float = 0.5) -> float | None:
    """The share of this machine's processors that others use while this process waits; None where none can tell."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return None

    def read() -> tuple[int, int]:
        ticks = [int(count) for count in counters.read_text().splitlines()[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for a disk

    all_before, idle_before = read()
    time.sleep(seconds)
    everything, idle = read()
    return 1 - (idle - idle_before) / max(1, everything - all_before)


def _output(*command: str) -> str | None:
    checkout = PROJECT_ROOT if (PROJECT_ROOT / ".git").exists() else None
    try:
        result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
