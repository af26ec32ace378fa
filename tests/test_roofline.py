"""Multiply-accumulates counted, and the machine's peak."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows.eager import FLOW
from pipeline.measure import roofline
from pipeline.measure.roofline import Peak
from pipeline.reports.runtime_report import Measured
from pipeline.settings.config import ModelConfig


def test_macs_are_those_counted_by_hand() -> None:
    # 3×3 over 4 channels for each of 8 × 10 × 10 outputs, and 800 × 5 of the linear layer
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    assert roofline.count_macs(network, torch.zeros(1, 4, 10, 10)) == 9 * 4 * 800 + 800 * 5


def test_macs_of_resnet18_are_the_published_ones() -> None:
    model = models.build(ModelConfig("resnet18"), DatasetInfo(3, tuple(map(str, range(1000)))))
    # torchvision's page of its weights says 1.81 GFLOPS, and means multiply-accumulates.
    assert roofline.count_macs(model, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(1.81, abs=0.01)


def test_peak_is_the_best_time_of_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, 0.5)
    peak = roofline.measure_peak(1, FLOW, clock=lambda: next(ticks))
    assert peak.fp32_gmacs == pytest.approx(512**3 / 1e9 / 0.5)
    assert peak.memory_gbytes == pytest.approx(2 * 2**28 / 1e9 / 0.5)
    assert peak.threads == 1


def test_share_of_peak_is_of_the_forms_own_arithmetic() -> None:
    peak = Peak(1, fp32_gmacs=100, int8_gmacs=400, int8_kernel="fbgemm", memory_gbytes=10)
    one = (1.0, 1.0, 1.0)

    def measured(form: str) -> Measured:
        return Measured("eager", form, 2, 100_000_000, peak, (10.0, 9.0, 11.0), 10, 10, one, one, "eager", 200, 10)

    # 200 images a second of 0.1 GMAC
    assert measured("fp32").share_of_peak_pct == pytest.approx(20)
    assert measured("int8").share_of_peak_pct == pytest.approx(5)
