"""Each stage on its own, with a context of the test's: no runner, no store, no tracking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import models, stages
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.spec import Part
from pipeline.datasets.unmade import Unmade
from pipeline.flows import Form, forms
from pipeline.flows.eager import flow, silence_known_warnings
from pipeline.run.plan import visible_config
from pipeline.settings.config import Config
from pipeline.tasks.classification import TASK
from pipeline.training.context import MODEL_FILE, Context
from tests.conftest import SMALL


def forbidden() -> Part:
    raise AssertionError("this stage must not read this part of the data")


class Bench:
    """Runs one stage after another in folders of their own, as the runner would."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.info = catalogue.info(config.dataset)
        self.models: dict[Form, Path] = {}

    def run(self, name: str) -> Context:
        stage = stages.registry()[name]
        folder = self.folder / name
        folder.mkdir()
        reads_training, reads_test = "train" in stage.parts, "test" in stage.parts
        context = Context(
            folder=folder,
            device=torch.device("cpu"),
            info=self.info,
            load_training=lambda: (
                catalogue.load_training(self.config.dataset) if reads_training else (forbidden(), forbidden())
            ),
            load_test=lambda: catalogue.load_test(self.config.dataset) if reads_test else forbidden(),
            flow=flow,
            task=TASK,
        )
        inputs = {form: self.models[form] for form in stage.inputs(self.config)}
        stage.run(visible_config(stage, self.config), inputs, context)
        if stage.produces:
            self.models[stage.produces] = folder / MODEL_FILE
        return context


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, compose_request(SMALL).config)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, Context]]:
    """All five stages, run one after another, each with its context."""
    silence_known_warnings()
    bench = Bench(tmp_path_factory.mktemp("walk"), compose_request([*SMALL, "train.epochs=2"]).config)
    return bench, {name: bench.run(name) for name in bench.config.stages}


Walked = tuple[Bench, dict[str, Context]]


def test_train_reports_its_curve_and_learns_when_run(walked: Walked) -> None:
    bench, contexts = walked
    context = contexts["train"]
    loss = [(value, step) for name, value, step in context.history if name == "train/loss"]
    accuracy = [step for name, value, step in context.history if name == "train/val_accuracy_pct"]
    assert [step for _, step in loss] == accuracy == [0, 1]
    assert loss[1][0] < loss[0][0]
    assert (context.folder / MODEL_FILE).is_file()
    forms.load("float", bench.models["float"], bench.config, bench.info)


def test_train_starts_from_weights_and_keeps_them_when_epochs_are_0(bench: Bench, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = models.build(bench.config.model, bench.info).state_dict()
    torch.save(trained, tmp_path / "trained.pt")
    bench.config.model.weights, bench.config.train.epochs = str(tmp_path / "trained.pt"), 0
    context = bench.run("train")
    kept = torch.load(bench.models["float"], weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in trained.items())
    assert context.history == []


def test_fuse_changes_the_graph_but_not_the_outputs_when_run(walked: Walked) -> None:
    bench, _ = walked
    network = forms.load("float", bench.models["float"], bench.config, bench.info).eval()
    fused = forms.load("fused", bench.models["fused"], bench.config, bench.info).eval()
    batch = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fused(batch), network(batch), rtol=1e-4, atol=1e-4)
    assert type(fused.conv1) is not type(network.conv1)


def test_qat_trains_with_fake_quantize_modules_when_run(walked: Walked) -> None:
    bench, contexts = walked
    reported = {name: step for name, _, step in contexts["qat"].history}
    curves = {"qat/loss", "qat/val_accuracy_pct", "qat/val_int8_accuracy_pct"}
    assert {name for name, step in reported.items() if step is not None} == curves
    assert reported.keys() - curves == {
        *("qat/kept_epoch", "qat/seconds", "qat/start_seconds", "qat/val_mcnemar_p"),
        *(f"qat/{which}_val_int8_accuracy_pct" for which in ("start", "kept")),
        *(f"qat/val_only_{which}_right" for which in ("start", "kept")),
    }
    fused = torch.load(bench.models["fused"], weights_only=True)
    trained = torch.load(bench.models["qat"], weights_only=True)
    assert sum("fake_quant_enabled" in name for name in trained) > 40
    assert not torch.equal(trained["fc.weight"], fused["fc.weight"])


def test_convert_stores_8_bit_weights_when_run(walked: Walked) -> None:
    bench, _ = walked
    int8 = torch.load(bench.models["int8"], weights_only=True)
    assert int8["conv1.weight"].dtype == torch.qint8
    assert int8["layer4.1.conv2.weight"].dtype == torch.qint8


def test_evaluate_reports_the_nine_metrics_and_their_relations_when_run(walked: Walked) -> None:
    bench, contexts = walked
    context = contexts["evaluate"]
    metrics = {name: value for name, value, step in context.history if step is None}
    nine = {f"{form}/{what}" for form in ("fp32", "int8") for what in ("accuracy_pct", "latency_ms", "size_mb")}
    assert metrics.keys() >= nine | {"speedup", "compression", "accuracy_drop_pct"}
    assert metrics["speedup"] == pytest.approx(metrics["fp32/latency_ms"] / metrics["int8/latency_ms"])
    assert metrics["compression"] == pytest.approx(metrics["fp32/size_mb"] / metrics["int8/size_mb"])
    drop = metrics["fp32/accuracy_pct"] - metrics["int8/accuracy_pct"]
    assert metrics["accuracy_drop_pct"] == pytest.approx(drop)
    assert metrics["fp32/latency_ms"] <= metrics["fp32/latency_p90_ms"] <= metrics["fp32/latency_p99_ms"]
    samples = json.loads((context.folder / "latency_samples_ms.json").read_text())
    assert [len(taken) for taken in samples.values()] == [bench.config.evaluate.repeats] * 2
    assert (context.folder / "confusion_matrix_int8.png").stat().st_size > 5000


@pytest.mark.parametrize(("metric", "form"), [("fp32/accuracy_pct", "float"), ("int8/accuracy_pct", "int8")])
def test_evaluate_accuracy_is_that_of_a_plain_loop_when_run(walked: Walked, metric: str, form: Form) -> None:
    bench, contexts = walked
    metrics = {name: value for name, value, _ in contexts["evaluate"].history}
    test, settings = catalogue.load_test(bench.config.dataset), bench.config.dataset
    network = forms.load(form, bench.models[form], bench.config, bench.info).eval()
    correct = 0
    assert isinstance(test.pixels, Unmade)
    for pixels, label in zip(test.pixels.sources, test.labels, strict=True):
        image = Image.fromarray(pixels[0]).resize((32, 32), Image.Resampling.BILINEAR)
        with torch.no_grad():
            logits = network((torch.tensor(np.asarray(image))[None, None] / 255 - settings.mean[0]) / settings.std[0])
        correct += int(logits.argmax()) == int(label)
    # One image of 60 may fall on the other side of a tie when batches are summed in another order.
    assert metrics[metric] == pytest.approx(100 * correct / len(test), abs=100 / 60 + 0.01)


def test_stage_fails_loudly_when_it_reads_a_section_that_it_did_not_declare(bench: Bench) -> None:
    visible = visible_config(stages.registry()["fuse"], bench.config)
    assert visible.model.name == "resnet18"
    with pytest.raises(AssertionError, match=r"fuse reads config\.qat"):
        _ = visible.qat.epochs
