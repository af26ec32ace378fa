"""The sensitivity of layers: what is measured, how it is ranked, and that it can be acted on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.spec import Part
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow
from pipeline.host.machine import Machine
from pipeline.measure import sensitivity
from pipeline.measure.sensitivity import LayerSensitivity, Sensitivity, analyse
from pipeline.reports.sensitivity_report import advice
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, check_parts, run
from pipeline.tasks import ACCURACY
from pipeline.tasks.classification import TASK
from tests.test_qconfig import Twin, backend_of, batch

Compose = Callable[..., Request]


def analysed(spoil: str | None) -> tuple[Sensitivity, nn.Module, Tensor, Tensor]:
    """The small twin on qnnpack, one layer's weights spoilt; labels are what the float network answers."""
    torch.manual_seed(0)
    twin = Twin()
    twin.bn.momentum = twin.bn2.momentum = None
    twin.train()(batch())
    if spoil is not None:
        with torch.no_grad():  # a dead input whose weight sets the scale of all others
            twin.get_submodule(spoil).weight[0] = 0
            twin.get_submodule(spoil).weight[0, 0] = 1000 * twin.get_submodule(spoil).weight.abs().max()
            if spoil == "fc":
                twin.bn2.weight[0] = twin.bn2.bias[0] = 0
    model = quantization.prepare_simulation(twin, backend_of("qnnpack"))
    with quantization.fake_quantize_off(model):
        model(batch())
        labels = model(batch()).argmax(1)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [(batch(), labels)]

    return analyse(model, flow, TASK, batches, batches, Machine()), model, batch(), labels


def test_spoilt_layer_is_ranked_worst_and_recovers_when_it_alone_stays_float() -> None:
    found, _, _, _ = analysed("fc")
    assert {layer.name for layer in found.layers} == {"conv", "depthwise", "fc"}
    worst = found.layers[0]
    assert worst.name == "fc"
    assert worst.weight_snr_db > 40  # the one weight outweighs all others: why weights alone do not rank
    assert worst.activation_snr_db < min(layer.activation_snr_db for layer in found.layers[1:])
    assert found.all_float == 100
    assert worst.alone_int8 < 80
    assert worst.alone_float > found.all_int8 + 10
    assert all(layer.alone_int8 > worst.alone_int8 for layer in found.layers[1:])


def test_ratios_and_accuracies_are_those_of_a_plain_computation() -> None:
    found, model, images, labels = analysed(None)
    by_name = {layer.name: layer for layer in found.layers}
    weight = model.fc.weight.detach()
    # Symmetric, one scale for the tensor, 8 bits: computed by hand.
    scale = weight.abs().max() / 127.5
    rounded = (weight / scale).round().clamp(-128, 127) * scale
    expected = 10 * torch.log10(weight.square().sum() / (weight - rounded).square().sum())
    assert by_name["fc"].weight_snr_db == pytest.approx(float(expected), abs=0.05)
    with torch.no_grad():
        assert found.all_int8 == pytest.approx(100 * float((model(images).argmax(1) == labels).double().mean()))
        with quantization.fake_quantize_off(model):
            clean = model(images)
            quantization.switch(model.fc, weight=True, activation=True)
            noisy = model(images)
    ratio = 10 * torch.log10(clean.square().sum() / (noisy - clean).square().sum())
    assert by_name["fc"].activation_snr_db == pytest.approx(float(ratio), abs=0.01)


def test_ranking_is_by_accuracy_first_and_ratio_second() -> None:
    found, _, _, _ = analysed("fc")
    order = [(layer.alone_int8, layer.activation_snr_db) for layer in found.layers]
    assert order == sorted(order)


def test_advice_keeps_layers_that_are_skipped_already_and_says_when_int8_loses_nothing() -> None:
    layers = tuple(LayerSensitivity(name, 30, 20, 90, 95) for name in "abcd")
    lossy = advice(Sensitivity(ACCURACY, layers, all_float=96, all_int8=90), ["z"])
    assert "backend.skip_layers=[z,a,b,c]" in lossy
    assert "nothing to win back" not in lossy
    assert "nothing to win back" in advice(Sensitivity(ACCURACY, layers, all_float=96, all_int8=96), [])


def test_decibels_are_infinite_without_noise() -> None:
    assert sensitivity.snr_db(100, 1) == pytest.approx(20)
    assert sensitivity.snr_db(1, 0) == float("inf")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, float]]:
    """The artifact, the terminal's last lines and the metrics of one small run, the test part locked away."""
    import contextlib
    import io

    from tests.conftest import SMALL

    quantization.silence_known_warnings()
    outputs = tmp_path_factory.mktemp("sensitivity") / "outputs"
    overrides = [*SMALL, "model=mobilenet_v2", "backend=qnnpack", "stages=[train,sensitivity]", "tracking=off"]
    request = compose_request([*overrides, "sensitivity.samples=10", f"outputs={outputs}"])

    def refuse(*_: object) -> Part:
        raise AssertionError("the test part was read")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(catalogue, "load_test", refuse)
        metrics = run(request).metrics
    name = next(name for name in artifacts_of(request.config) if name.startswith("sensitivity-"))
    return outputs / "artifacts" / name, said.getvalue(), metrics


Finished = tuple[Path, str, dict[str, float]]


def test_stage_leaves_table_chart_and_metrics_when_run(finished: Finished) -> None:
    folder, _, metrics = finished
    rows = list(csv.DictReader((folder / "sensitivity.csv").open()))
    assert [int(row["rank"]) for row in rows] == list(range(1, 54))  # mobilenet_v2 has 53 such layers
    table = (folder / "sensitivity.md").read_text()
    assert f"`{rows[0]['name']}`" in table
    assert "ranked by the accuracy" in table
    assert (folder / "sensitivity.png").stat().st_size > 20_000
    assert metrics["sensitivity/images"] == 10
    assert metrics["sensitivity/worst_snr_db"] == min(float(row["activation_snr_db"]) for row in rows)


def test_stage_prints_the_setting_that_acts_on_it_and_the_runner_takes_it(finished: Finished) -> None:
    folder, said, _ = finished
    rows = list(csv.DictReader((folder / "sensitivity.csv").open()))
    line = next(line for line in said.splitlines() if "backend.skip_layers=" in line)
    override = line.removeprefix("leave them float:").split()[0]
    assert override == f"backend.skip_layers=[{','.join(row['name'] for row in rows[:3])}]"
    check_parts(compose_request(["model=mobilenet_v2", override]).config)
