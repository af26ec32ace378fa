"""The settings of what is shipped: which runtimes, exported how, measured how, registered under which name."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.settings.setting import setting


@dataclass
class RuntimeConfig:
    """Which runtimes the models are exported for and measured on."""

    names: list[str] = setting(["eager", "torchscript"])


@dataclass
class ExportConfig:
    """How far an exported model may differ from torch's own: the test images, in percent, with the same class."""

    min_agreement: float = setting(99.9, minimum=0, maximum=100)


@dataclass
class BenchmarkConfig:
    """How latencies on the runtimes are measured; the method is that of docs/latency.md."""

    threads: list[int] = setting([1], minimum=1, maximum=1024)
    batch_sizes: list[int] = setting([1, 8], minimum=1, maximum=65536)
    min_repeats: int = setting(200, minimum=1)
    interval_pct: float = setting(2.0, above=0)
    max_seconds: float = setting(60.0, above=0)
    passes: int = setting(10, minimum=2)
    pin: bool = setting(False)
    memory: bool = setting(True)


@dataclass
class RegisterConfig:
    """Under which name the int8 model is registered (null: it is not), and which version is its champion.

    The champion loses at most `max_drop_pct` points of accuracy against fp32 and has the lowest latency of those.
    """

    name: str | None = setting(None)
    max_drop_pct: float = setting(0.5, minimum=0, maximum=100)
