"""The training loop: seeds, resuming, schedules, the kept epoch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.datasets.spec import DatasetInfo, Part
from pipeline.flows.eager import flow
from pipeline.host.errors import UserError
from pipeline.host.faults import told
from pipeline.host.machine import Machine
from pipeline.host.world import World
from pipeline.settings.config import DatasetConfig, TrainConfig
from pipeline.tasks.classification import TASK
from pipeline.training import loop as training
from pipeline.training import optimization
from pipeline.training.context import PROGRESS_FILE, Context

DATA = DatasetConfig(name="made", image_size=8, crop_padding=1)


def part(count: int, seed: int) -> Part:
    """Images whose class is written in their brightness, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
    return Part((labels.view(-1, 1, 1, 1) * 60 + noise).clamp(0, 255).to(torch.uint8), labels)


def context(folder: Path) -> Context:
    return Context(
        folder=folder,
        device=torch.device("cpu"),
        info=DatasetInfo(1, tuple("abcd")),
        load_training=lambda: (part(64, 0), part(32, 1)),
        load_test=lambda: part(0, 0),
        flow=flow,
        task=TASK,
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 4)
    )


def settings(**changes: object) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "batch_size": 16, "learning_rate": 0.01, **changes})  # type: ignore[arg-type]


def fit(folder: Path, chosen: TrainConfig, seed: int = 0, before_step=lambda model, done: None):  # type: ignore[no-untyped-def]
    folder.mkdir(exist_ok=True)
    model, made = network(), context(folder)
    training.fit(model, chosen, DATA, seed, made, "train", before_step)
    return model, made


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class Killed(Exception):
    pass


def untimed(context: Context) -> list[tuple[str, float, int | None]]:
    """What a training reported, but for what its clock said."""
    return [point for point in context.history if point[0] != "train/seconds"]


@pytest.mark.parametrize("warmup", [0.0, 1.5, 2.25])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant"])
def test_training_equals_an_undisturbed_one_bit_for_bit_when_resumed(
    tmp_path: Path, schedule: str, warmup: float
) -> None:
    if schedule == "one_cycle" and warmup:
        pytest.skip("one_cycle has a warm-up of its own")

    def kill_in_third_epoch(model: nn.Module, epochs_done: float) -> None:
        if epochs_done > 2.3:
            raise Killed

    chosen = settings(schedule=schedule, warmup_epochs=warmup)
    undisturbed, expected = fit(tmp_path / "undisturbed", chosen)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", chosen, before_step=kill_in_third_epoch)
    assert (tmp_path / "killed" / PROGRESS_FILE).exists()
    resumed, history = fit(tmp_path / "killed", chosen)
    assert equal(resumed, undisturbed)
    assert untimed(history) == untimed(expected)


def test_nothing_is_trained_again_when_killed_after_the_last_epoch(tmp_path: Path) -> None:
    trained, _ = fit(tmp_path / "run", settings())
    # The checkpoint stays until the artifact is complete.
    again, history = fit(tmp_path / "run", settings(), before_step=lambda model, done: pytest.fail("trained again"))
    assert equal(again, trained)
    assert len([name for name, _, epoch in history.history if epoch is not None]) == 2 * settings().epochs


def test_best_weights_are_written_once_and_found_again_when_later_epochs_are_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ruin(model: nn.Module, epochs_done: float) -> None:
        if epochs_done in (2, 3):  # as these epochs begin
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-1)

    def ruin_and_kill(model: nn.Module, epochs_done: float) -> None:
        ruin(model, epochs_done)
        if epochs_done > 3.3:
            raise Killed

    with pytest.raises(Killed):
        fit(tmp_path / "run", settings(), before_step=ruin_and_kill)
    left = torch.load(tmp_path / "run" / PROGRESS_FILE, weights_only=True)
    assert left["best_epoch"] < left["epochs_done"] == 3
    (apart,) = (tmp_path / "run").glob("progress-*")
    assert apart.name == f"progress-best-{left['best_epoch']}.pt"
    best = torch.load(apart, weights_only=True)
    resumed, _ = fit(tmp_path / "run", settings(), before_step=ruin)
    assert all(torch.equal(value, best[name]) for name, value in resumed.state_dict().items())
    assert [path.name for path in (tmp_path / "run").glob("progress-*")] == [apart.name]
    apart.write_bytes(apart.read_bytes()[:100])
    again, _ = fit(tmp_path / "run", settings(), before_step=ruin)
    assert f"is damaged ({apart.name}: UserError): training starts again" in capsys.readouterr().err
    assert equal(again, resumed)
    assert torch.load(apart, weights_only=True).keys() == best.keys()


def test_training_repeats_bit_for_bit_when_the_seed_is_the_same(tmp_path: Path) -> None:
    first, _ = fit(tmp_path / "1", settings())
    second, _ = fit(tmp_path / "2", settings())
    other, _ = fit(tmp_path / "3", settings(), seed=1)
    assert equal(first, second)
    assert not equal(first, other)


def rates(folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: TrainConfig) -> list[float]:
    """The learning rate of every step (4 an epoch), in shares of `learning_rate`."""
    made: list[torch.optim.Optimizer] = []
    build = optimization.make_optimizer
    monkeypatch.setattr(optimization, "make_optimizer", lambda *args: made.append(build(*args)) or made[0])
    noted: list[float] = []

    def note(model: nn.Module, epochs_done: float) -> None:
        noted.append(made[0].param_groups[0]["lr"] / chosen.learning_rate)

    fit(folder, chosen, before_step=note)
    return noted


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("step", [1.0, 0.1, 0.01, 0.001]),
        ("cosine", [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]),
    ],
)
def test_learning_rate_follows_its_schedule_when_epochs_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, expected: list[float]
) -> None:
    assert rates(tmp_path / "run", monkeypatch, settings(schedule=schedule))[::4] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1.0] * 12),
        ("step", [1.0] * 4 + [0.1] * 4 + [0.01] * 4),
        ("cosine", [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]),
    ],
)
def test_learning_rate_climbs_linearly_before_its_schedule_when_warmed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, after: list[float]
) -> None:
    noted = rates(tmp_path / "run", monkeypatch, settings(schedule=schedule, warmup_epochs=1))
    assert noted == pytest.approx([0.2, 0.4, 0.6, 0.8, *after])


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_longer_training_goes_on_from_a_shorter_one_bit_for_bit_when_warmed_up(tmp_path: Path, schedule: str) -> None:
    chosen = settings(schedule=schedule, warmup_epochs=1.5)
    assert optimization.is_open_ended(chosen)
    whole, _ = fit(tmp_path / "whole", chosen)
    fit(tmp_path / "run", dataclasses.replace(chosen, epochs=1))
    longer, _ = fit(tmp_path / "run", chosen)
    assert equal(longer, whole)


def test_best_epoch_is_kept_when_a_later_one_is_worse(tmp_path: Path) -> None:
    def ruin_last_epoch(model: nn.Module, epochs_done: float) -> None:
        if epochs_done >= 3:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-1)

    best, made = fit(tmp_path / "best", settings(keep="best"), before_step=ruin_last_epoch)
    curve = [value for name, value, _ in made.history if name == "train/val_accuracy_pct"]
    assert curve[3] < max(curve)
    validation = part(32, 1)

    def accuracy(model: nn.Module) -> float:
        predicted = training.predict(model, validation, DATA, 16, torch.device("cpu"), "test", flow, Machine(), TASK)
        return TASK.value(predicted, validation.labels)

    assert accuracy(best) == max(curve)
    last, _ = fit(tmp_path / "last", settings(keep="last"), before_step=ruin_last_epoch)
    assert accuracy(last) == curve[3]


def test_training_stops_with_epoch_and_step_when_the_loss_is_not_finite(tmp_path: Path) -> None:
    def poison(model: nn.Module, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    with pytest.raises(UserError, match=r"train: the loss is nan in epoch 2, step 3: train\.learning_rate"):
        fit(tmp_path / "run", settings(), before_step=poison)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_training_learns_when_each_optimizer_is_chosen(tmp_path: Path, optimizer: str) -> None:
    _, made = fit(tmp_path / "run", settings(optimizer=optimizer, epochs=8))
    losses = [value for name, value, _ in made.history if name == "train/loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_predict_gives_every_image_its_class_in_order_when_the_last_batch_is_short() -> None:
    class Brightness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = ((images.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255 - 30) / 60
            return -(level[:, None] - torch.arange(4)).abs()

    sample = part(30, 3)
    predicted = training.predict(Brightness(), sample, DATA, 7, torch.device("cpu"), "test", flow, Machine(), TASK)
    assert torch.equal(predicted, sample.labels)
    assert TASK.value(predicted, sample.labels) == 100


def test_checkpoint_is_kept_when_memory_runs_out_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "run", settings(schedule="constant", epochs=2))
    before = (tmp_path / "run" / PROGRESS_FILE).read_bytes()
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), MemoryError()):
        with monkeypatch.context() as patch:

            def full(optimizer: object, state: object, error: Exception = error) -> None:
                raise error

            patch.setattr(torch.optim.AdamW, "load_state_dict", full)
            with pytest.raises(UserError, match="memory"), told():
                fit(tmp_path / "run", settings(schedule="constant"))
        assert (tmp_path / "run" / PROGRESS_FILE).read_bytes() == before
    resumed, _ = fit(tmp_path / "run", settings(schedule="constant"))
    undisturbed, _ = fit(tmp_path / "other", settings(schedule="constant"))
    assert equal(resumed, undisturbed)


def test_training_is_refused_when_the_processes_see_different_checkpoints(tmp_path: Path) -> None:
    class BesideAnEmptyFolder(World):
        def gather(self, mine: torch.Tensor) -> torch.Tensor:
            return torch.cat([mine, torch.zeros_like(mine)])

    model, _ = fit(tmp_path, settings())
    made = dataclasses.replace(context(tmp_path), world=BesideAnEmptyFolder())
    with pytest.raises(
        UserError, match=r"the processes see checkpoints after 4, 0 epochs; allowed: outputs in a folder"
    ):
        training.fit(model, settings(), DATA, 0, made, "train")


def test_epoch_is_kept_when_the_run_is_interrupted_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.host.terminal.epoch_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, settings())
    assert torch.load(tmp_path / PROGRESS_FILE, weights_only=True)["epochs_done"] == 1


class Insisting(nn.Linear):
    """As torchvision's MNASNet: it loads what says of which version it is, and nothing else."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, local_metadata, *rest):  # type: ignore[no-untyped-def]
        if local_metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


def test_best_epoch_is_loaded_when_a_module_insists_on_its_version(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), Insisting(64, 4))
    training.fit(model, settings(), DATA, 0, context(tmp_path), "train", lambda model, done: None)
    assert (tmp_path / PROGRESS_FILE).exists()
