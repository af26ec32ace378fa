"""Latency on a fake clock, and size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.measure.measurement import Latency, measure_latency, size_mb


class Takes(nn.Module):
    """A model that moves a fake clock by the next of its times when it runs."""

    def __init__(self, name: str, clock: list[float], calls: list[str], times_ms: list[float]) -> None:
        super().__init__()
        self.name, self.clock, self.calls, self.times_ms = name, clock, calls, times_ms

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert torch.get_num_threads() == 1
        assert torch.is_inference_mode_enabled()
        self.clock[0] += self.times_ms[len(self.calls) // 2 % len(self.times_ms)] / 1000
        self.calls.append(self.name)
        return image


def test_latency_is_taken_turn_by_turn_without_the_warmup_when_two_models_are_measured() -> None:
    clock, calls = [0.0], []
    models = {
        "slow": Takes("slow", clock, calls, [900.0, 900.0, 10.0, 30.0, 20.0]),
        "fast": Takes("fast", clock, calls, [500.0, 500.0, 1.0, 3.0, 2.0]),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measured = measure_latency(models, torch.zeros(1), thread_count=1, warmup=2, repeats=3, clock=lambda: clock[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert measured["slow"].samples_ms == pytest.approx((10, 30, 20))
    assert measured["fast"].samples_ms == pytest.approx((1, 3, 2))
    assert measured["slow"].median_ms == pytest.approx(20)
    assert calls == ["slow", "fast", "fast", "slow"] * 2 + ["slow", "fast"]


def test_latency_percentiles_follow_the_samples() -> None:
    latency = Latency(tuple(float(value) for value in range(1, 102)))
    assert latency.median_ms == 51
    assert latency.percentile_ms(90) == 91
    assert latency.percentile_ms(99) == 100


def test_size_is_that_of_the_file_when_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = nn.Linear(1000, 250)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert size_mb(model) == pytest.approx((tmp_path / "model.pt").stat().st_size / 1e6, rel=0.001)
    assert size_mb(model) == pytest.approx(1.001, rel=0.01)
