"""Export the float and the int8 models to each runtime, and test each file against the model it was made from.

`<form>/<runtime>/` holds the runtime's file and the preprocessing. A runtime whose file does not decide what torch's
own model decides, beyond rounding, fails for that form, and so does an int8 file whose weights are in float; the others
go on. `parity.json` tells later stages which files may be measured and shipped.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.datasets import catalogue
from pipeline.datasets.preprocessing import OWN_PREPROCESSING, PREPROCESSING_FILE
from pipeline.flows import FORMS, FormSpec, controls, forms
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.faults import fault
from pipeline.host.files import check_space
from pipeline.measure.measurement import MEGABYTE, threads
from pipeline.measure.pairs import TESTS
from pipeline.reports.file_report import in_words
from pipeline.runtimes import Predictor, Runtime, eager, exported_to, parity
from pipeline.runtimes.contents import int8_numbers, int8_pct
from pipeline.runtimes.picture_in import taking_pictures
from pipeline.settings.config import Config
from pipeline.stages.contract import Inputs, Product, Stage
from pipeline.training.context import Context

# So many numbers of torch's own int8 weights, in %, an int8 file may lack.
_LEEWAY_PCT = 1.0


@dataclass(frozen=True)
class _Reference:
    """A form of the model as torch runs it, with its outputs for the test part (N, …)."""

    form: FormSpec
    model: nn.Module
    outputs: np.ndarray


def run(config: Config, inputs: Inputs, context: Context) -> None:
    references: list[_Reference] = []
    verdicts: dict[str, dict[str, bool]] = {}
    if catalogue.preprocessing(config.dataset) is None:
        terminal.warn(
            f"export: {OWN_PREPROCESSING}: the models take tensors as it makes them, and have no {PREPROCESSING_FILE}"
        )
    with threads():
        for form in FORMS:
            if form.name not in inputs:
                continue
            with context.machine.computing():
                model = forms.load(form.name, inputs[form.name], config, context.info).eval()
            predictor = eager.predictor(model, torch.get_num_threads())
            outputs = _outputs(predictor, f"eager {form.prefix}", config, context, as_pictures=False)
            references.append(_Reference(form, model, outputs))
            verdicts[form.prefix] = {
                runtime.name: _ship(runtime, references[-1], references[0], config, context)
                for runtime in exported_to(config.runtime.names)
            }
    if not any(verdicts["int8"].values()):
        raise UserError(
            f"runtime.names=[{','.join(config.runtime.names)}]: no exported int8 model agrees with torch's own; the "
            "reasons stand above"
        )
    context.attach(parity.FILE).write_text(json.dumps(verdicts, indent=1))


def _outputs(predictor: Predictor, description: str, config: Config, context: Context, as_pictures: bool) -> np.ndarray:
    """Of the whole test part: (N, …)."""
    part, batch_size = context.load_test(), config.evaluate.batch_size
    return parity.outputs(predictor, part, config.dataset, batch_size, description, context.machine, as_pictures)


def _ship(runtime: Runtime, reference: _Reference, fp32: _Reference, config: Config, context: Context) -> bool:
    """Export a form to a runtime and test it there; report the numbers, and say whether it may be shipped."""
    prefix, as_pictures = reference.form.prefix, config.export.takes_pictures
    name, folder = f"{runtime.name}/{prefix}", context.folder / prefix / runtime.name
    targets, metric = context.load_test().labels, context.task.primary
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir(parents=True)
    try:
        with context.machine.computing():
            told = dict(runtime.export(*_model_and_example(reference.model, config, context), folder) or {})
            floating = _floating(runtime, reference, folder, told) if reference.form.is_int8 else None
        if (preprocessing := catalogue.preprocessing(config.dataset)) is not None:
            preprocessing = dataclasses.replace(preprocessing, class_names=context.info.class_names)
            (preprocessing.for_pictures() if as_pictures else preprocessing).write(folder)
        with context.machine.computing():
            predictor = runtime.load(folder, torch.get_num_threads())
        outputs = _outputs(predictor, f"{runtime.name} {prefix}", config, context, as_pictures)
    except (UserError, OSError, MemoryError):  # of this machine, now: nothing to keep as a verdict
        raise
    except Exception as error:  # whatever an exporter or a runtime raises for a network that it cannot take
        if fault(error):
            raise
        check_space(context.folder)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        terminal.warn(f"{name}: fails: {reason}")
        shutil.rmtree(folder, ignore_errors=True)
        context.metric(f"{name}/parity", 0)
        return False
    found = parity.compare(outputs, reference.outputs, targets, context.task)
    agrees = found.agreement_pct >= config.export.min_agreement
    unfaithful = context.flow.unfaithful(config) if reference.form.is_int8 else None
    may_round = reference.form.is_int8 and unfaithful is None
    right = agrees or (may_round and parity.is_rounding(found, reference.outputs, fp32.outputs, context.task))
    passed = right and floating is None
    for what, value in dataclasses.asdict(found).items():
        context.metric(f"{name}/{ {'value': metric.name, 'p': metric.test}.get(what, what) }", value)
    context.metric(f"{name}/file_mb", sum(path.stat().st_size for path in folder.iterdir()) / MEGABYTE)
    for what, value in told.items():
        context.metric(f"{name}/{what}", value)
    context.metric(f"{name}/parity", float(passed))
    line = (
        f"{name}: agrees on {found.agreement_pct:.2f} % of {len(targets)} test images, outputs differ by "
        f"{found.max_difference:.3g} at most, {found.mean_difference:.3g} on average"
    )
    if passed:
        terminal.say(f"  {line}" if agrees else f"  {line}: {_accepted(found, reference, config, context)}")
        return True
    if right:
        terminal.warn(f"{name}: fails: {floating}")
    else:
        cause = f"; likely cause: {unfaithful}" if unfaithful is not None else ""
        terminal.warn(f"{line}; export.min_agreement={config.export.min_agreement:g}: fails{cause}")
    shutil.rmtree(folder)  # nobody shall take it for the model
    return False


def _floating(runtime: Runtime, reference: _Reference, folder: Path, told: dict[str, float]) -> str | None:
    """What an int8 file holds in float that torch's int8 model does not, in words; None: nothing.

    Adds the share that is in int8 to `told`.
    """
    if runtime.inspect is None:
        return None
    contents = runtime.inspect(folder, None)
    weights, torchs = contents.weights, eager.weights(reference.model)
    share, expected = contents.int8_weights_pct, int8_pct(torchs)
    if weights is None or share is None or expected is None:
        return None
    told["int8_weights_pct"] = share
    # What is in 8 bits must be there. What is in float may be more: exporters compute constants beforehand.
    if int8_numbers(weights) >= (1 - _LEEWAY_PCT / 100) * int8_numbers(torchs):
        return None
    return (
        f"{share:.1f} % of the numbers in its weights are in int8, where torch's int8 model has {expected:.1f} %; in "
        f"float: {in_words(contents.float_matrices)}"
    )


def _model_and_example(model: nn.Module, config: Config, context: Context) -> tuple[nn.Module, torch.Tensor]:
    """What is exported of a form, and one image as that takes it."""
    channels, size = context.info.channels, config.dataset.image_size
    if not config.export.takes_pictures:
        return model, torch.zeros(1, channels, size, size)
    example = torch.zeros(1, size, size, channels, dtype=torch.uint8)
    return taking_pictures(model, size, config.dataset.mean, config.dataset.std).eval(), example


def _accepted(found: parity.Parity, reference: _Reference, config: Config, context: Context) -> str:
    """Why a file that agrees on fewer images than asked is right all the same, as the end of a line."""
    metric = context.task.primary
    value = parity.value(reference.outputs, context.load_test().labels, context.task)
    return (
        f"fewer than export.min_agreement={config.export.min_agreement:g}, by rounding alone: {metric.label} "
        f"{metric.text(found.value)} against {metric.text(value)}, {TESTS[metric.test]} p = {found.p:.2g}, and "
        "quantization itself changes more"
    )


def _controls(config: Config) -> tuple[Product, ...]:
    return tuple(form.name for form in controls(config.stages, config.method) if form.is_shipped)


STAGE = Stage(
    name="export",
    run=run,
    sections=("task", "model", "dataset", "backend", "fuse", "runtime", "export", "evaluate"),
    consumes=("float", "int8"),
    also_consumes=_controls,
    produces="exports",
    ignores=(
        "dataset.max_train_samples",
        "dataset.validation_fraction",
        "dataset.crop_padding",
        "dataset.horizontal_flip",
        "evaluate.fake_quantized",
        "evaluate.threads",
        "evaluate.warmup",
        "evaluate.repeats",
    ),
    parts=("test",),
    measures_machine=True,  # whether kernels saturate is the processor's doing
)
