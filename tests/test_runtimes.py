"""Export and parity: every network on every runtime, and the gate that a wrong export does not pass."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import runtimes
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import eager as quantization
from pipeline.flows import forms
from pipeline.flows.eager import qconfig, twins
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.reports import runtime_report
from pipeline.run import runner
from pipeline.runtimes import Runtime, eager, memory, parity, registry
from pipeline.tasks.classification import TASK
from tests.conftest import SMALL, TRAINED
from tests.machine_lock import could_measure

for needed in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

ALL = ["torchscript", "onnxruntime", "openvino"]
SHIPPING = [*SMALL, *TRAINED, "tracking=off", "runtime=all", "stages=[train,fuse,qat,convert,evaluate,export]"]


def int8_model(name: str, backend: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """A network in int8, not trained but normalized as a trained one is, and images."""
    overrides = [f"model={name}", f"backend={backend}", "dataset=cifar10", f"dataset.image_size={size}"]
    config = compose_request(overrides).config
    torch.manual_seed(0)
    twin = twins.build(config.model, catalogue.info(config.dataset))
    images = torch.randn(12, 3, size, size)
    twin.train()
    with torch.no_grad():
        for module in twin.modules():  # outputs that differ from image to image
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        twin(images)
        prepared = quantization.prepare_ptq(twin, config.backend, "min_max")
        prepared(images)
    return quantization.convert(prepared, config.backend), images


@pytest.mark.parametrize(
    ("name", "size", "backend"),
    [
        pytest.param("resnet18", 32, "qnnpack", marks=pytest.mark.operations),
        ("compact_resnet", 32, "fbgemm"),
        pytest.param("mobilenet_v3_large", 32, "fbgemm", marks=pytest.mark.operations),
        pytest.param("resnet18", 32, "fbgemm", marks=pytest.mark.operations),
        pytest.param("mobilenet_v2", 32, "qnnpack", marks=pytest.mark.operations),
        pytest.param("blog_resnet18", 65, "fbgemm", marks=pytest.mark.operations),
    ],
)
def test_exported_int8_computes_what_torch_computes_for_any_batch(
    name: str, size: int, backend: str, tmp_path: Path
) -> None:
    model, images = int8_model(name, backend, size)
    reference = eager.predictor(model, 1)(images.numpy())
    assert reference.std() > 0
    for runtime in (registry()[each] for each in ALL):
        folder = tmp_path / runtime.name
        folder.mkdir()
        runtime.export(model, images[:1], folder)
        predictor = runtime.load(folder, 1)
        outputs = predictor(images.numpy())
        assert outputs.shape == (12, 10)
        assert outputs.dtype == np.float32
        # A value between two levels may be rounded to either, and an untrained deep network magnifies that.
        alike = np.corrcoef(outputs.ravel(), reference.ravel())[0, 1]
        assert alike > (0.5 if name.startswith("mobilenet") else 0.97), runtime.name
        np.testing.assert_allclose(predictor(images[:3].numpy()), outputs[:3], atol=0.1)
        if runtime.name == "torchscript":
            assert np.array_equal(outputs, reference)
            torch.backends.quantized.engine = "fbgemm" if backend == "qnnpack" else "qnnpack"
            assert np.array_equal(runtime.load(folder, 1)(images.numpy()), reference)
            assert torch.backends.quantized.engine == backend


def test_onnx_holds_int8_weights_between_quantize_and_dequantize(tmp_path: Path) -> None:
    import onnx

    model, images = int8_model("resnet18", "fbgemm", 32)
    registry()["onnxruntime"].export(model, images[:1], tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 20
    assert kinds.count("DequantizeLinear") > 40
    assert (tmp_path / "model.onnx").stat().st_size < 12.5e6  # 11.2 million weights of a byte


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs in which the default model is trained, converted and evaluated. Not to be written to."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    walk(outputs, "stages=[train,fuse,qat,convert,evaluate]")
    return outputs


@pytest.fixture
def trained(trained_once: Path, outputs: Path) -> Path:
    """The same for one test, which may add to it."""
    shutil.copytree(trained_once, outputs, copy_function=os.link, ignore=shutil.ignore_patterns(".locks"))
    return outputs


def walk(outputs: Path, *overrides: str) -> dict[str, float]:
    request = compose_request([*SHIPPING, f"outputs={outputs}", *overrides])
    return runner.run(request).metrics


def exports_folder(outputs: Path) -> Path:
    (folder,) = (outputs / "artifacts").glob("export-*")
    return folder


def test_export_writes_every_form_for_every_runtime_and_reports_parity(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = walk(trained)
    folder = exports_folder(trained)
    for form in ("fp32", "int8"):
        for name in ALL:
            assert (folder / form / name / registry()[name].file).is_file()
            assert json.loads((folder / form / name / "preprocessing.json").read_text())["image_size"] == 32
            assert metrics[f"{name}/{form}/parity"] == 1
            agreement = metrics[f"{name}/{form}/agreement_pct"]
            assert agreement >= (100 if form == "fp32" else 95)
            apart = abs(metrics[f"{name}/{form}/accuracy_pct"] - metrics[f"{form}/accuracy_pct"])
            assert apart <= 100 - agreement + 1e-6  # only where the classes differ
            assert metrics[f"{name}/{form}/mean_difference"] < (1e-4 if form == "fp32" else 0.05)
    assert metrics["torchscript/int8/max_difference"] == 0
    assert "onnxruntime/int8: agrees on" in capsys.readouterr().out
    walk(trained)
    assert "export    cached" in capsys.readouterr().out
    (folder / "int8" / "onnxruntime" / "model.onnx").write_bytes(b"cut off")
    walk(trained)
    captured = capsys.readouterr()
    assert "int8/onnxruntime/model.onnx does not match its manifest" in captured.err
    assert "export    done" in captured.out


def broken(runtime: Runtime, how: Callable[[np.ndarray], np.ndarray]) -> Runtime:
    """A runtime whose int8 outputs are changed."""

    def load(folder: Path, threads: int) -> Any:
        predictor = runtime.load(folder, threads)
        return (lambda images: how(predictor(images))) if folder.parent.name == "int8" else predictor

    return dataclasses.replace(runtime, load=load)


def test_runtime_fails_its_gate_and_others_go_on_when_its_export_is_broken(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = dict(registry())

    def no_export(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
        raise RuntimeError("no such\noperator")

    registry_with_faults = {
        **real,
        "onnxruntime": broken(real["onnxruntime"], lambda logits: np.roll(logits, 1, axis=1)),
        "openvino": dataclasses.replace(real["openvino"], export=no_export),
    }
    monkeypatch.setattr(runtimes, "registry", lambda: registry_with_faults)
    monkeypatch.setattr(qconfig, "has_vnni", lambda *given: False)
    metrics = walk(trained, "backend.activation_bits=8")
    assert metrics["torchscript/int8/parity"] == 1
    assert metrics["onnxruntime/int8/parity"] == metrics["openvino/int8/parity"] == 0
    assert metrics["onnxruntime/fp32/parity"] == 1
    error = capsys.readouterr().err
    assert re.search(r"onnxruntime/int8: agrees on \d\.\d\d %", error)
    assert "likely cause: activations of 8 bits saturate" in error
    assert "openvino/int8: fails: RuntimeError: no such operator" in error
    verdicts = json.loads((exports_folder(trained) / parity.FILE).read_text())
    assert verdicts["int8"] == {"torchscript": True, "onnxruntime": False, "openvino": False}
    assert [path.name for path in (exports_folder(trained) / "int8").iterdir()] == ["torchscript"]


def test_int8_file_fails_when_its_weights_are_in_float_though_its_outputs_agree(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seen = dict(registry()), list[nn.Module]()

    def export_first(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
        seen.append(model)  # fp32 comes first
        real["onnxruntime"].export(seen[0], example, folder)

    faulty = {**real, "onnxruntime": dataclasses.replace(real["onnxruntime"], export=export_first)}
    monkeypatch.setattr(runtimes, "registry", lambda: faulty)
    metrics = walk(trained)
    assert metrics["onnxruntime/int8/agreement_pct"] >= 90
    assert metrics["onnxruntime/int8/int8_weights_pct"] == metrics["onnxruntime/int8/parity"] == 0
    assert metrics["openvino/int8/int8_weights_pct"] == metrics["torchscript/int8/int8_weights_pct"] == 100
    assert "onnxruntime/fp32/int8_weights_pct" not in metrics
    assert re.search(
        r"onnxruntime/int8: fails: 0\.0 % of the numbers in its weights are in int8, where torch's int8 model has "
        r"100\.0 %; in float: \S+ 16×16×3×3, .* and \d+ more",
        capsys.readouterr().err,
    )
    assert not (exports_folder(trained) / "int8" / "onnxruntime").exists()


def test_export_fails_and_leaves_no_verdict_when_the_disk_is_full(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = dict(registry())
    faulty = {**real, "onnxruntime": dataclasses.replace(real["onnxruntime"], export=full)}
    monkeypatch.setattr(runtimes, "registry", lambda: faulty)
    with pytest.raises(OSError, match="No space left"):
        walk(trained)
    assert not list((trained / "artifacts").glob("export-*[!l]"))


def test_run_fails_when_no_int8_export_agrees(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry()["torchscript"]
    monkeypatch.setattr(runtimes, "registry", lambda: {"torchscript": broken(real, lambda logits: logits * np.nan)})
    with pytest.raises(UserError, match="no exported int8 model agrees"):
        walk(trained, "runtime=default")
    assert not list((trained / "artifacts").glob("export-*[!l]"))


def test_int8_file_passes_when_it_disagrees_by_no_more_than_rounding(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0)

    def rounded(logits: np.ndarray) -> np.ndarray:
        return logits + noise.normal(0, 0.003, logits.shape).astype(np.float32)

    def wrong(logits: np.ndarray) -> np.ndarray:  # decides on as few images otherwise, but is far from torch's
        return 2 * rounded(logits)

    def run(how: Callable[[np.ndarray], np.ndarray], name: str) -> dict[str, float]:
        real = registry()["torchscript"]
        monkeypatch.setattr(runtimes, "registry", lambda: {**registry(), "torchscript": broken(real, how)})
        # Hardly trained, so that quantization decides on some images otherwise.
        asked = [*SMALL, "tracking=off", f"outputs={outputs}/{name}", "method=ptq", "runtime.names=[torchscript]"]
        stages = "stages=[train,ptq,export]"
        request = compose_request([*asked, "export.min_agreement=100", "dataset.max_test_samples=359", stages])
        return runner.run(request).metrics

    metrics = run(rounded, "rounded")
    assert metrics["torchscript/int8/agreement_pct"] < 100
    assert metrics["torchscript/int8/parity"] == 1
    said = capsys.readouterr().out
    assert "fewer than export.min_agreement=100, by rounding alone: accuracy " in said
    with pytest.raises(UserError, match="no exported int8 model agrees"):
        run(wrong, "wrong")
    assert "export.min_agreement=100: fails" in capsys.readouterr().err


def test_rounding_explains_no_more_than_quantization_changes() -> None:
    labels = torch.arange(10).repeat_interleave(10)
    fp32 = np.eye(10, dtype=np.float32)[labels.numpy()]
    int8, exported, wrong = fp32.copy(), fp32.copy(), fp32.copy()
    int8[::10] = np.roll(int8[::10], 1, axis=1)  # quantization changes 10 classes of 100
    exported[::20] = np.roll(exported[::20], 1, axis=1)  # 5 of them come back
    wrong[1::2] = np.roll(wrong[1::2], 1, axis=1)
    assert parity.is_rounding(parity.compare(exported, int8, labels, TASK), int8, fp32, TASK)
    assert not parity.is_rounding(parity.compare(wrong, int8, labels, TASK), int8, fp32, TASK)
    # As many other classes as quantization changes, but all of them wrong.
    worse = int8.copy()
    worse[1::10] = np.roll(worse[1::10], 1, axis=1)
    assert not parity.is_rounding(parity.compare(worse, int8, labels, TASK), int8, fp32, TASK)


def test_gate_counts_an_output_that_is_no_number_as_different() -> None:
    reference = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    exported = np.array([[1.0, np.nan], [1.0, 0.0]], np.float32)
    found = parity.compare(exported, reference, torch.tensor([0, 0]), TASK)
    assert found.agreement_pct == 50
    assert found.max_difference == np.inf


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("[eager,torchscrip]", "did you mean 'torchscript'?"),
        ("[eager]", "nothing to export; allowed: runtime=all"),
        ("[tensorrt]", "allowed: eager, executorch, inductor, onnxruntime, openvino, torchscript"),
    ],
)
def test_runtimes_are_refused_before_anything_runs_when_they_cannot_be_exported_to(
    names: str, told: str, outputs: Path
) -> None:
    with pytest.raises(UserError) as error:
        walk(outputs, "runtime=default", f"runtime.names={names}")
    assert told in str(error.value)
    assert not outputs.exists()


def test_runtime_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))
    with pytest.raises(UserError, match=r"openvino is not installed here; pip install -e '\.\[openvino\]'"):
        walk(outputs)
    assert not outputs.exists()


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
import torch
from torch import nn
from pipeline.runtimes import registry

openvino, folder = registry()["openvino"], Path(sys.argv[1])
openvino.export(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8), folder)
first, second = openvino.load(folder, 1), openvino.load(folder, 1)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda number, frame: print("heard", flush=True))
signal.raise_signal(signal.SIGTERM)
"""


def test_signal_is_heard_when_models_of_openvino_have_come_and_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


def test_vnni_is_looked_for_under_both_its_names() -> None:
    assert qconfig.has_vnni({"avx_vnni": True})
    assert qconfig.has_vnni({"avx512_vnni": True})
    assert not qconfig.has_vnni({"avx2": True})


def test_benchmark_reports_every_runtime_that_has_parity_and_one_of_ones_own(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"benchmark.{given}" for given in ("max_seconds=1", "min_repeats=3", "passes=2", "batch_sizes=[1,2]")]
    stages = "stages=[train,fuse,qat,convert,evaluate,export,benchmark]"
    real = dict(registry())
    faulty = {**real, "openvino": broken(real["openvino"], lambda logits: -logits)}
    monkeypatch.setattr(runtimes, "registry", lambda: faulty)
    metrics = walk(trained, stages, "runtime.names=[eager,onnxruntime,openvino,tests.planted.runtime:RUNTIME]", *quick)
    for name in ("eager/fp32", "eager/int8", "onnxruntime/int8", "openvino/fp32", "traced/int8"):
        assert metrics[f"{name}/latency_ms"] > 0
        assert metrics[f"{name}/latency_ci_low_ms"] <= metrics[f"{name}/latency_ms"]
        assert metrics[f"{name}/throughput_t1_b2_ips"] == pytest.approx(2000 / metrics[f"{name}/latency_t1_b2_ms"])
        assert metrics[f"{name}/share_of_peak_pct"] > 0
    assert "openvino/int8/latency_ms" not in metrics
    assert metrics["eager/fp32/times_eager_fp32"] == 1
    best = max(metrics[f"{name}/fp32/times_best_fp32"] for name in ("eager", "onnxruntime", "openvino", "traced"))
    assert best == 1
    # Each in a process of its own: onnxruntime alone takes less than torch does.
    assert 20 < metrics["onnxruntime/int8/peak_memory_mb"] < metrics["traced/int8/peak_memory_mb"] < 2000
    (folder,) = (trained / "artifacts").glob("benchmark-*")
    samples = json.loads((folder / "benchmark_samples_ms.json").read_text())
    assert [len(rounds) > 0 for rounds in samples["1 threads, batch 2"]["onnxruntime/int8"]] == [True, True]
    assert (folder / "roofline.png").stat().st_size > 10_000
    said = capsys.readouterr()
    assert "× best fp32" in said.out
    assert "in 2 passes" in said.out
    # Of two passes the 95 % interval is 13 times as wide as they differ.
    assert re.search(
        r"in 2 passes the 95 % interval of \S+ is [\d.]+ % of its median .*more benchmark\.passes", said.err
    )


@pytest.mark.operations
def test_whatever_computes_holds_the_lock_when_models_are_exported_and_measured(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, free = trained / "artifacts" / ".locks", dict[str, list[bool]]()

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            free.setdefault(name, []).append(could_measure(locks))
            return real(*args, **named)

        return call

    def load(folder: Path, threads: int) -> Any:
        return watched("predict", real.load(folder, threads))

    real = registry()["torchscript"]
    watching = {"export": watched("export", real.export), "load": watched("load", load)}
    monkeypatch.setattr(runtimes, "registry", lambda: {"torchscript": dataclasses.replace(real, **watching)})
    predictor = eager.predictor
    monkeypatch.setattr(eager, "predictor", lambda *args: watched("predict eager", predictor(*args)))
    monkeypatch.setattr(memory, "peak_memory_mb", lambda *given: 100.0)
    for module, name in ((forms, "load"), (memory, "peak_memory_mb"), (runtime_report, "draw_bars")):
        monkeypatch.setattr(module, name, watched(f"{module.__name__}.{name}", getattr(module, name)))
    quick = [f"benchmark.{given}" for given in ("max_seconds=1", "min_repeats=2", "passes=2", "batch_sizes=[1]")]
    walk(trained, "runtime=default", "stages=[train,fuse,qat,convert,evaluate,export,benchmark]", *quick)
    assert len(free) == 7
    assert {name: count for name, found in free.items() if (count := sum(found))} == {}
    assert could_measure(locks)
