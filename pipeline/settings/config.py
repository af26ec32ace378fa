"""The typed configuration: one dataclass a group, ranges and choices beside each setting.

This module imports neither torch nor Hydra, so that `--help` and every check of the configuration
stay fast. `composition.py` registers the dataclasses with Hydra and turns what was composed into a
`Config`; `check` refuses values out of range. Whether a model, a backend or a data set can really be
had on this machine is asked of the module that owns it, before the first stage runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.host.errors import UserError
from pipeline.settings.setting import check_settings, setting
from pipeline.settings.store_address import check_store

OBSERVERS = ("moving_average", "histogram", "min_max")


@dataclass
class ModelConfig:
    """What is quantized. `weights`: a path to a `state_dict`, or the name of a torchvision weight.

    `target` is the import path of the user's own network, `package.module:name`, `quantizable_target` that of its twin
    for the eager flow; `kwargs` are what both are called with. `arch` is the name of a network of a library
    (model=torchvision, model=timm), which is built with `kwargs` too.
    """

    name: str = setting()
    arch: str | None = setting(None)
    target: str | None = setting(None)
    quantizable_target: str | None = setting(None)
    kwargs: dict[str, Any] = setting({})
    stem: str | None = setting(None, choices=("imagenet", "small"))
    # The file's content goes into the key instead of its path: models.fingerprint.
    weights: str | None = setting(None, in_key=False)


@dataclass
class DatasetConfig:
    """Which images, how many, and how a batch of them is prepared.

    The length of `mean` (and of `std`) is the number of channels: 1 or 3. Image files are decoded once, into
    memory, or batch by batch by so many `workers` (`loading`: auto decides by `max_memory_gb`), to the same
    bits; one that is `unreadable`, or has more pixels than `max_image_megapixels`, ends the run or is left out.
    Values are scaled to 0 … 1 before `mean` and `std`; in grey files of more than 8 bits `white_level` becomes 1
    (null: 65535, and 1 in those of floating-point numbers). `target` is the import path of the user's own,
    `package.module:name`, which is called with `kwargs`.
    """

    name: str = setting()
    # The content of what they give goes into the key instead: catalogue.fingerprint.
    target: str | None = setting(None, in_key=False)
    kwargs: dict[str, Any] = setting({}, in_key=False)
    root: str = setting("data", in_key=False)
    mirror: str | None = setting(None, in_key=False)
    image_size: int = setting(32, minimum=8, maximum=4096)
    mean: list[float] = setting([0.5])
    std: list[float] = setting([0.5], above=0)
    crop_padding: int = setting(0, minimum=0, maximum=512)
    horizontal_flip: bool = setting(False)
    validation_fraction: float = setting(0.1, above=0, below=1)
    # Of the validation part and of max_train_samples. Not `seed`: the spread over seeds shall be that of training.
    split_seed: int = setting(0, minimum=0, maximum=2**32 - 1)
    test_fraction: float = setting(0.2, above=0, below=1)
    max_train_samples: int | None = setting(None, minimum=2)
    max_test_samples: int | None = setting(None, minimum=1)
    loading: str = setting("auto", choices=("auto", "memory", "stream"), in_key=False)
    max_memory_gb: float = setting(4.0, above=0, in_key=False)
    workers: int | None = setting(None, minimum=1, maximum=1024, in_key=False)
    unreadable: str = setting("refuse", choices=("refuse", "skip"))
    max_image_megapixels: float = setting(179.0, above=0, maximum=100_000)
    white_level: float | None = setting(None, above=0)


@dataclass
class BackendConfig:
    """Which default qconfig is taken, what of it is overridden, and which engine runs the converted model.

    null keeps the default of `qconfig`: bits of activations, weights by channel, the activations' observer,
    their scheme. `skip_layers` stay float. With `fake_quantize=false` QAT takes the post-training qconfig,
    whose observers alone do not simulate int8. `flow` is the way from float to int8: one of
    pipeline/flows, or `package.module:name` of the user's own. In the export flow `qconfig` says where is quantized,
    `engine` for which runtime, and whole blocks of the network may stay float (`float_modules`). `runtimes` can run
    the result: torch's own first, and then the one that it is meant for.
    """

    name: str = setting()
    flow: str = setting("eager")
    qconfig: str = setting()
    engine: str = setting()
    activation_bits: int | None = setting(None, minimum=7, maximum=8)
    per_channel: bool | None = setting(None)
    observer: str | None = setting(None, choices=OBSERVERS)
    symmetric: bool | None = setting(None)
    skip_layers: list[str] = setting([])
    float_modules: list[str] = setting([])
    # What runtime=default and runtime=all are for this backend.
    runtimes: list[str] = setting(["eager", "torchscript", "onnxruntime", "openvino"], in_key=False)
    fake_quantize: bool = setting(True)


@dataclass
class FuseConfig:
    """Whether QAT keeps BatchNorm, trainable, in its fused modules (train), or has it folded before (eval)."""

    mode: str = setting("train", choices=("train", "eval"))


@dataclass
class OptimizationConfig:
    """How a model is trained; the base of `train` and `qat`. Learning-rate schedules step a batch."""

    epochs: int = setting(3, minimum=0, maximum=10_000)
    batch_size: int = setting(128, minimum=2, maximum=65_536)
    optimizer: str = setting("adamw", choices=("adamw", "adam", "sgd"))
    learning_rate: float = setting(1e-3, above=0, maximum=100)
    weight_decay: float = setting(0.01, minimum=0, maximum=10)
    momentum: float = setting(0.9, minimum=0, below=1)
    schedule: str = setting("one_cycle", choices=("one_cycle", "cosine", "step", "constant"))
    step_epochs: int = setting(1, minimum=1)
    step_gamma: float = setting(0.1, above=0, maximum=1)
    warmup_epochs: float = setting(0.0, minimum=0, maximum=10_000)
    label_smoothing: float = setting(0.0, minimum=0, below=1)
    precision: str = setting("auto", choices=("auto", "fp32", "bf16"))
    channels_last: bool = setting(False)
    compile: bool = setting(False)
    keep: str = setting("best", choices=("best", "last"))


@dataclass
class TrainConfig(OptimizationConfig):
    """Training of the float model. `epochs=0` keeps `model.weights` as they are."""


@dataclass
class QatConfig(OptimizationConfig):
    """Quantization-aware training. The freeze epochs count from 0 and may be fractions; null: never."""

    epochs: int = setting(1, minimum=1, maximum=10_000)
    # Of QAT's and fine-tuning's order and augmentation; null: `seed`.
    seed: int | None = setting(None, minimum=0, maximum=2**32 - 1)
    # Fake-quantize modules compute in fp32 alone.
    precision: str = setting("fp32", choices=("fp32",))
    freeze_bn_epoch: float | None = setting(None, minimum=0)
    freeze_observer_epoch: float | None = setting(None, minimum=0)
    # ptq: training begins from post-training quantization, as ptq.* says, and is never returned below it.
    init: str = setting("fresh", choices=("fresh", "ptq"))
    # The share of the float model's outputs, beside the labels, in the loss.
    distill_weight: float = setting(0.0, minimum=0, maximum=1)
    distill_temperature: float = setting(4.0, above=0, maximum=1000)


@dataclass
class PtqConfig:
    """Post-training quantization: how many training images the observers see, so many at a time.

    `observer` is that of the activations; null: `backend.observer`, and without that a histogram. `bias_correction`
    takes off the biases what rounding the weights shifts the outputs by. `smooth_quant`, 0 to 1, is how much of what is
    large behind a LayerNorm is moved into the weights of linear layers; null: none.
    """

    calibration_samples: int = setting(1024, minimum=1)
    observer: str | None = setting(None, choices=OBSERVERS)
    bias_correction: bool = setting(False)
    smooth_quant: float | None = setting(None, minimum=0, maximum=1)
    batch_size: int = setting(64, minimum=1, maximum=65_536)


@dataclass
class SensitivityConfig:
    """What each layer's quantization costs: measured on so many validation images, so many at a time."""

    samples: int = setting(1000, minimum=1)
    batch_size: int = setting(256, minimum=1, maximum=65_536)


@dataclass
class EvaluateConfig:
    """Accuracy on the whole test part; latency at batch 1 on the CPU, `threads` of it.

    `fake_quantized` evaluates the QAT model before it is converted too, which shows what converting costs.
    """

    batch_size: int = setting(256, minimum=1, maximum=65_536)
    threads: int = setting(1, minimum=1, maximum=1024)
    warmup: int = setting(20, minimum=0, maximum=100_000)
    repeats: int = setting(200, minimum=2, maximum=1_000_000)
    fake_quantized: bool = setting(False)


@dataclass
class RuntimeConfig:
    """Which runtimes the models are exported for and measured on; `package.module:name` is one of the user's own."""

    names: list[str] = setting(["eager", "torchscript"])


@dataclass
class ExportConfig:
    """What an exported model takes, and how far it may differ from torch's own.

    `input`: float32 (N, C, S, S), normalized; or uint8 (N, S, S, C), as decoders give images, which it normalizes
    itself. `min_agreement`: the test images, in %, on which both must decide alike; an int8 file may fall short of it
    by rounding.
    """

    input: str = setting("float32", choices=("float32", "uint8"))
    min_agreement: float = setting(99.9, minimum=0, maximum=100)

    @property
    def takes_pictures(self) -> bool:
        return self.input == "uint8"


@dataclass
class BenchmarkConfig:
    """How latencies on the runtimes are measured; the method is that of docs/latency.md.

    `source=file` measures besides from the bytes of picture files to the outputs, in parts.
    """

    threads: list[int] = setting([1], minimum=1, maximum=1024)
    batch_sizes: list[int] = setting([1, 8], minimum=1, maximum=65536)
    min_repeats: int = setting(200, minimum=1)
    interval_pct: float = setting(2.0, above=0)
    max_seconds: float = setting(60.0, above=0)
    passes: int = setting(10, minimum=2)
    pin: bool = setting(False)
    source: str = setting("array", choices=("array", "file"))
    memory: bool = setting(True)


@dataclass
class RegisterConfig:
    """Under which name the int8 model is registered (null: it is not), and which version is its champion.

    `input`: what it takes there, arrays as the file does, or pictures: PNG and JPEG files, in base64.
    The champion loses at most `max_drop_pct` points of accuracy (or as much of what else the task judges by) against
    fp32 and has the lowest latency of those.
    """

    name: str | None = setting(None)
    input: str = setting("array", choices=("array", "picture"))
    max_drop_pct: float = setting(0.5, minimum=0, maximum=100)


@dataclass
class TrackingConfig:
    """Where results go. `uri: null` is the SQLite store under `outputs`.

    `patience_s`: how long the end of a run, and the start of a sweep's job, wait for a server that is away.
    """

    enabled: bool = setting(True)
    uri: str | None = setting(None)
    experiment: str = setting("pipeline")
    run_name: str | None = setting(None)
    patience_s: float = setting(60.0, minimum=0, maximum=86_400)


@dataclass
class Config:
    """One run: a choice from each group, a task, a seed, a device and the stages to walk."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    qat: QatConfig = field(default_factory=QatConfig)
    ptq: PtqConfig = field(default_factory=PtqConfig)
    sensitivity: SensitivityConfig = field(default_factory=SensitivityConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # What an output is worth: one of pipeline/tasks, or package.module:name of the user's own.
    task: str = setting("classification")
    # Which way the int8 model that ships is made: by the stages qat and convert, or by ptq.
    method: str = setting("qat", choices=("qat", "ptq"))
    seed: int = setting(0, minimum=0, maximum=2**32 - 1)
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    stages: list[str] = setting(["train", "fuse", "qat", "convert", "evaluate"])
    force: str = setting("false")
    outputs: str = setting("outputs", in_key=False)


def check(config: Config) -> None:
    """Refuse what is out of range or no choice, with one line that names key, value and what is allowed.

    Raises:
        UserError: for the first setting that is wrong.
    """
    check_settings(config)
    channels = len(config.dataset.mean)
    if channels not in (1, 3):
        raise UserError(f"dataset.mean={config.dataset.mean}: allowed: 1 value (grey) or 3 values (RGB)")
    if len(config.dataset.std) != channels:
        raise UserError(f"dataset.std={config.dataset.std}: allowed: as many values as dataset.mean has ({channels})")
    for name, values in (("mean", config.dataset.mean), ("std", config.dataset.std)):
        for value in values:
            if not 0 <= value <= 1:
                hint = f", such as {value:g} / 255 = {value / 255:.4g}" if 1 < value <= 255 else ""
                raise UserError(
                    f"dataset.{name}={values}: values are scaled to 0 … 1 before it is used; allowed: 0 to 1{hint}"
                )
    if not config.stages:
        raise UserError("stages=[]: allowed: at least one stage, by its name")
    if not config.outputs:
        raise UserError("outputs='': allowed: the name of a folder")
    if config.tracking.uri is not None:
        check_store("tracking.uri", config.tracking.uri)
    if not config.tracking.experiment.strip():
        raise UserError(f"tracking.experiment='{config.tracking.experiment}': allowed: a name")
    _check_warmup("train", config.train)
    _check_warmup("qat", config.qat)
    if config.qat.freeze_observer_epoch == 0 and config.qat.init == "fresh":
        raise UserError("qat.freeze_observer_epoch=0: there are no ranges yet; allowed: more than 0, or qat.init=ptq")
    if config.train.epochs == 0 and config.model.weights is None and "train" in config.stages:
        raise UserError("train.epochs=0: allowed: 1 or more, or model.weights set to start from trained weights")


def _check_warmup(section: str, settings: OptimizationConfig) -> None:
    warmup, key = settings.warmup_epochs, f"{section}.warmup_epochs={settings.warmup_epochs:g}"
    if warmup and settings.schedule == "one_cycle":
        raise UserError(f"{key}: {section}.schedule=one_cycle has a warm-up of its own; allowed: 0 with it")
    if warmup and settings.schedule == "cosine" and 0 < settings.epochs <= warmup:
        raise UserError(f"{key}: allowed: less than {section}.epochs ({settings.epochs}) with the cosine schedule")
