"""Which networks the export flow takes: thirty of torchvision and timm, each from float to a file that a runtime runs.

    OMP_NUM_THREADS=1 python -m benchmarks.coverage                          # backend=openvino
    OMP_NUM_THREADS=1 python -m benchmarks.coverage onnxruntime --only swin_t,mobileone_s0

Each is a run of `python -m pipeline` on bundled digits, in a process of its own, so that not even a crash of a runtime
ends the others: trained for one epoch of 200 images, quantized after training and quantization-aware for one more,
exported, held against torch and timed turn by turn with its float file. What a run gave is kept in
OUTPUTS/<backend>/<network>.json beside its log: a network that went all the way is not run again, others are. The table
is printed, and written to OUTPUTS/<backend>.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import PROJECT_ROOT, resolved
from pipeline.measure.latency import ratio_interval
from pipeline.settings.typed import command

# Library, network, image size, and what else it takes.
NETWORKS: tuple[tuple[str, str, int, str], ...] = (
    ("torchvision", "resnet18", 32, ""),
    ("torchvision", "resnet50", 32, ""),
    ("torchvision", "mobilenet_v2", 32, ""),
    ("torchvision", "mobilenet_v3_large", 32, ""),
    ("torchvision", "efficientnet_b0", 32, ""),
    ("torchvision", "efficientnet_v2_s", 32, ""),
    ("torchvision", "regnet_y_400mf", 32, ""),
    ("torchvision", "densenet121", 32, ""),
    ("torchvision", "shufflenet_v2_x0_5", 32, ""),
    ("torchvision", "squeezenet1_1", 33, ""),
    ("torchvision", "mnasnet0_5", 47, ""),
    ("torchvision", "googlenet", 32, "+model.kwargs.aux_logits=false"),  # else it trains with three outputs
    ("torchvision", "convnext_tiny", 32, ""),
    ("torchvision", "swin_t", 64, ""),
    ("torchvision", "resnext50_32x4d", 32, ""),
    ("timm", "resnet18", 32, ""),
    ("timm", "regnety_002", 32, ""),
    ("timm", "mobilenetv4_conv_small", 32, ""),
    ("timm", "mobileone_s0", 32, ""),
    ("timm", "repvgg_a0", 32, ""),
    ("timm", "ghostnet_100", 32, ""),
    ("timm", "efficientnet_lite0", 32, ""),
    ("timm", "convnext_atto", 32, ""),
    ("timm", "vit_tiny_patch16_224", 32, "+model.kwargs.img_size=32"),
    ("timm", "mobilevit_xxs", 64, ""),
    ("timm", "edgenext_xx_small", 64, ""),
    ("timm", "poolformer_s12", 64, ""),
    ("timm", "lcnet_050", 33, ""),
    ("timm", "hgnetv2_b0", 64, ""),
    ("timm", "efficientvit_b0", 64, "train.epochs=6"),
)
_BACKENDS = ("openvino", "onnxruntime")
_SHORT = (
    "dataset.max_train_samples=200",
    "dataset.max_test_samples=100",
    "train.epochs=1",
    "train.batch_size=20",
    "qat.epochs=1",
    "qat.batch_size=20",
    "ptq.calibration_samples=60",
    "export.min_agreement=95",
    "benchmark.batch_sizes=[1]",
    "benchmark.min_repeats=50",
    "benchmark.passes=5",
    "benchmark.max_seconds=10",
    "benchmark.memory=false",
    "tracking=off",
    "stages=[train,fuse,ptq,qat,convert,export,benchmark]",
)
_MAX_SECONDS = 1200
_HEADERS = ["network", "px", "parameters", "graph differs", "QAT keeps", "PTQ agrees", "QAT agrees"]
_HEADERS += ["fp32 / int8", "95 % interval", "MB fp32", "MB int8", "min"]


def main() -> None:
    run_command(_run)


def _run() -> None:
    parser = Parser(
        "python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", nargs="?", default="openvino", choices=_BACKENDS)
    parser.add_argument("--only", help="networks, with commas between")
    parser.add_argument("--outputs", default="outputs/coverage")
    arguments = parser.parse_args()
    folder = resolved(arguments.outputs) / arguments.backend
    folder.mkdir(parents=True, exist_ok=True)
    known = [f"{library}/{arch}" for library, arch, *_ in NETWORKS]
    only = arguments.only.split(",") if arguments.only else known
    for name in only:
        if not any(name in (one, one.split("/")[1]) for one in known):
            raise UserError(f"--only={name}: {suggestion(name, known)}")
    found = {}
    for library, arch, size, more in NETWORKS:
        name = f"{library}/{arch}"
        file = folder / f"{library}-{arch}.json"
        kept = json.loads(file.read_text()) if file.is_file() else None
        if (name in only or arch in only) and (kept is None or "cause" in kept):
            asked = [f"model={library}", f"model.arch={arch}", f"backend={arguments.backend}"]
            asked += [f"dataset.image_size={size}", *([more] if more else [])]
            kept = _take(asked, arguments.backend, file)
            file.write_text(json.dumps(kept, indent=1))
            print(f"{name}: {kept.get('cause', 'whole')}  {kept['minutes']:.1f} min", flush=True)
        if kept is not None:
            found[name] = {"px": size, **kept}
    text = table(found)
    (folder.parent / f"{arguments.backend}.md").write_text(text)
    print(f"\n{text}")


def _take(asked: list[str], backend: str, file: Path) -> dict[str, Any]:
    """Run one network, and give what its results say, or the cause why it has none."""
    outputs, log = file.with_suffix(""), file.with_suffix(".log")
    shutil.rmtree(outputs, ignore_errors=True)
    overrides = [*_SHORT, *asked, f"runtime.names=[{backend}]", f"outputs={outputs}"]
    started = time.perf_counter()
    with log.open("w") as stream:
        print(command(overrides), file=stream, flush=True)
        try:
            status = subprocess.run(
                [sys.executable, "-m", "pipeline", *overrides],
                cwd=PROJECT_ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=_MAX_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    result: dict[str, Any] = {"minutes": (time.perf_counter() - started) / 60}
    told = log.read_text()
    try:
        result |= _results(outputs / "artifacts", told, backend)
    finally:
        shutil.rmtree(outputs, ignore_errors=True)
    errors = re.findall(r"^(?:error|warning): (.*(?:cannot|fails|crash).*)", told, re.MULTILINE)
    if status is None:
        result["cause"] = f"not over after {_MAX_SECONDS / 60:.0f} minutes"
    elif status < 0:
        result["cause"] = f"the process ended by {signal.Signals(-status).name}"
    elif status > 0:
        result["cause"] = (re.findall(r"^error: (.*)", told, re.MULTILINE) or told.splitlines())[-1]
    elif "ratio" not in result or min(result["ptq_agrees"], result["qat_agrees"]) < 95:
        result["cause"] = errors[-1] if errors else "not every file agrees"
    return result


def _results(artifacts: Path, told: str, backend: str) -> dict[str, Any]:
    """What the manifests, the samples of the benchmark and the lines of a run say, as far as it got."""
    manifests = [json.loads(path.read_text()) for path in artifacts.glob("*/manifest.json")]
    metrics = {name: value for manifest in manifests for name, value, _ in manifest["metrics"]}
    result: dict[str, Any] = {}
    for model in artifacts.glob("train-*/model.pt"):
        result["parameters"] = _parameters(torch.load(model, weights_only=True))
    if "float network's bit for bit" in told:
        result["difference"] = 0.0
    elif said := re.search(r"differ from the float network's by (\S+) at most", told):
        result["difference"] = float(said.group(1))
    for what, name in {
        "kept": "qat/kept_epoch",
        "qat_loss": "qat/loss",
        "ptq_agrees": f"{backend}/ptq_int8/agreement_pct",
        "qat_agrees": f"{backend}/int8/agreement_pct",
        "mb_fp32": f"{backend}/fp32/file_mb",
        "mb_int8": f"{backend}/int8/file_mb",
    }.items():
        if name in metrics:
            result[what] = metrics[name]
    for path in artifacts.glob("benchmark-*/benchmark_samples_ms.json"):
        (samples,) = json.loads(path.read_text()).values()
        if {f"{backend}/fp32", f"{backend}/int8"} <= samples.keys():
            result["ratio"] = ratio_interval(samples[f"{backend}/fp32"], samples[f"{backend}/int8"])
    return result


def _parameters(state: Mapping[str, Any]) -> int:
    """How many numbers are trained."""
    statistics = ("running_mean", "running_var")
    trained = (value for name, value in state.items() if value.is_floating_point() and not name.endswith(statistics))
    return sum(value.numel() for value in trained)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each network that went all the way, and below it the others, a line each with its cause."""
    rows, others = [], []
    for name, one in found.items():
        if "cause" in one:
            others.append(f"- {name} ({one['px']} px): {one['cause']}")
            continue
        ratio, low, high = one["ratio"]
        rows.append(
            [
                name,
                one["px"],
                f"{one['parameters'] / 1e6:.1f} M",
                f"{one['difference']:.0e}" if one["difference"] else "0",
                "QAT" if one["kept"] else "its start",
                f"{one['ptq_agrees']:.0f} %",
                f"{one['qat_agrees']:.0f} %",
                f"{ratio:.2f}",
                f"[{low:.2f}, {high:.2f}]",
                f"{one['mb_fp32']:.1f}",
                f"{one['mb_int8']:.1f}",
                f"{one['minutes']:.1f}",
            ]
        )
    whole = tabulate(
        rows, _HEADERS, "github", disable_numparse=True, colalign=["left", *["right"] * (len(_HEADERS) - 1)]
    )
    ratios = [one["ratio"][0] for one in found.values() if "cause" not in one]
    middle = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    heading = f"{len(rows)} of {len(found)} went all the way; fp32 / int8, geometric mean: {middle:.2f}"
    return "\n".join([heading, "", whole, *(["", *others] if others else [])]) + "\n"


if __name__ == "__main__":
    main()
