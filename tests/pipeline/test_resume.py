"""A run that was stopped after any step and goes on is the run that was not: numbers, text and weights, bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeTrainer, config_of, essential, letters
from safetensors import SafetensorError
from torch import Tensor

from gkd_rl.config.launch import Stopped, StopRequest
from gkd_rl.errors import CheckpointError
from gkd_rl.evaluation.evaluator import Evaluation
from gkd_rl.outputs.tracking import Listing, Tracker
from gkd_rl.pipeline.checkpoints import Checkpoints, steps_in
from gkd_rl.pipeline.experiment import _train
from gkd_rl.training.cost import CostTotals
from gkd_rl.training.state import Snapshot, read_snapshot, trained_parameters, write_snapshot
from gkd_rl.training.trainer import StepRecord, Trainer

STEPS = 5
PPO = ("policy_gradient=ppo", "policy_gradient.epochs=2", "policy_gradient.value.hidden_size=4")
# name -> kind of the student, overrides, dropout
CASES: dict[str, tuple[str, tuple[str, ...], float]] = {
    "t5, dropout, accumulation": ("t5", ("trainer.micro_batch_size=3",), 0.2),
    "llama": ("llama", ("trainer.diagnose_every=2",), 0.0),
    "t5 with LoRA and dropout": ("t5 with LoRA", (), 0.2),
    "llama with LoRA, switch": (
        "llama with LoRA",
        ("alpha_schedule=switch", "alpha=0.3", "alpha_schedule.start=0.9", "alpha_schedule.until=0.5"),
        0.0,
    ),
    "PPO, two epochs, value head": ("t5", (*PPO, "alpha=0"), 0.0),
    "Adafactor, half on references": ("llama", ("trainer.optimizer=adafactor", "lmbda=0.5"), 0.1),
}
Make = Callable[..., Checkpoints]


@pytest.fixture
def make(make_trainer: MakeTrainer, tmp_path: Path) -> Make:
    """`make("llama", folder="a")`: a run that has not begun, in a folder that may hold one that has."""
    open_trackers: list[Tracker] = []

    def build(case: str = "llama", folder: str = "run", *overrides: str, every: int = 2, **models: str) -> Checkpoints:
        kind, changes, dropout = CASES[case]
        overrides = (f"trainer.steps={STEPS}", *changes, *overrides)
        for tracker in open_trackers:
            tracker.close()
        torch.manual_seed(7)
        trainer = make_trainer(*overrides, reward=letters, kind=kind, dropout=dropout)
        tracker = Tracker(tmp_path / folder, "disabled", Listing("p", None, "n"), {})
        open_trackers.append(tracker)
        settings = config_of(*overrides).checkpoint
        models = models or {"student": "s"}
        return Checkpoints(tmp_path / folder, settings, every, trainer, CostTotals(), tracker, models)

    return build


def evaluations() -> dict[str, Evaluation]:
    values = {"reward": np.array([0.1, np.nan]), "sampled/divergence": np.array([0.25, 1 / 3], dtype=np.float32)}
    profiles = {"sampled/divergence": np.array([0.5, 1 / 7])}
    return {"student before": Evaluation(values, ["a b", "\ud800 \n"], by_position=profiles)}


class Killed(RuntimeError):
    """As SIGKILL: nothing runs after it."""


def train(kept: Checkpoints, resume: bool = False, dies_after: int | None = None) -> dict[str, Evaluation]:
    """The run's own stage as the pipeline takes it; what a kill after a step leaves of it."""
    config = config_of("trainer.log_every=2", f"trainer.steps={STEPS}")
    found, taken = kept.begin(evaluations, ["a", "b"], resume)
    if dies_after is not None:
        after_step = kept.after_step

        def dying(step: int, metrics: dict[str, float], last: int) -> None:
            if step == dies_after:
                raise Killed
            after_step(step, metrics, last)

        kept.after_step = dying
    _train(config, kept, taken, StopRequest())
    return found


def untimed(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(trainer)}


@dataclass(frozen=True)
class Left:
    """What a run leaves: the numbers of every step, samples, cost and weights."""

    metrics: list[dict[str, Any]]
    samples: bytes
    cost: dict[str, float]
    weights: dict[str, Tensor]

    @classmethod
    def by(cls, kept: Checkpoints) -> Left:
        cost = {name: value for name, value in kept.cost.totals.items() if not name.startswith("time/")}
        samples = (kept.run_folder / "samples.jsonl").read_bytes()
        return cls(untimed(kept.run_folder), samples, cost, weights(kept.trainer))


WHOLE: dict[str, Left] = {}  # by case; several tests compare with the same one
Whole = Callable[[str], Left]


@pytest.fixture
def whole(make: Make) -> Whole:
    """`whole("llama")`: what a run leaves that nothing disturbs."""

    def undisturbed(case: str) -> Left:
        if case not in WHOLE:
            kept = make(case, "whole")
            before = weights(kept.trainer)
            train(kept)
            WHOLE[case] = Left.by(kept)
            assert any(not torch.equal(before[name], value) for name, value in WHOLE[case].weights.items())
            assert WHOLE[case].samples and WHOLE[case].cost
        return WHOLE[case]

    return undisturbed


def assert_same(one: Left, other: Left) -> None:
    """Bit for bit."""
    assert (one.metrics, one.samples, one.cost) == (other.metrics, other.samples, other.cost)
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


@pytest.mark.parametrize(
    "case", essential(CASES, "t5, dropout, accumulation", "llama with LoRA, switch", "PPO, two epochs, value head")
)
def test_a_killed_run_goes_on_as_if_nothing_was(case: str, make: Make, whole: Whole) -> None:
    undisturbed = whole(case)
    with pytest.raises(Killed):
        train(make(case), dies_after=1)
    with pytest.raises(Killed):
        train(make(case), resume=True, dies_after=3)
    resumed = make(case)
    torch.rand(3)  # a process that has drawn other numbers
    train(resumed, resume=True)
    assert [line["step"] for line in untimed(resumed.run_folder)] == [1, 2, 3, 4, 5]
    assert_same(Left.by(resumed), undisturbed)


@pytest.mark.slow
def test_a_run_may_be_stopped_after_every_step(make: Make, whole: Whole) -> None:
    case = "t5 with LoRA and dropout"
    undisturbed, config = whole(case), config_of("trainer.log_every=2", f"trainer.steps={STEPS}")
    for step in range(1, STEPS):
        stop = StopRequest()
        stop.number = signal.SIGTERM
        kept = make(case)
        _, taken = kept.begin(evaluations, ["a", "b"], step > 1)
        with pytest.raises(Stopped, match=f"SIGTERM: step {step} is kept"):
            _train(config, kept, taken, stop)
    resumed = make(case)
    train(resumed, resume=True)
    assert_same(Left.by(resumed), undisturbed)


def test_evaluations_before_training_are_not_made_again(make: Make) -> None:
    with pytest.raises(Killed):
        train(make(), dies_after=3)

    def never() -> dict[str, Evaluation]:
        pytest.fail("evaluated again")

    found, taken = make().begin(never, ["a", "b"], True)
    assert taken == 2
    (one,), (other,) = found.values(), evaluations().values()
    assert one.completions == other.completions
    for own, wanted in ((one.values, other.values), (one.by_position, other.by_position)):
        assert own.keys() == wanted.keys()
        for name, values in wanted.items():
            assert own[name].dtype == values.dtype
            np.testing.assert_array_equal(own[name], values)


def damage_byte(path: Path) -> None:
    content = bytearray((path / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(content)


def test_costs_of_a_checkpoint_made_before_phases_were_renamed_are_kept(make: Make, whole: Whole) -> None:
    case = "PPO, two epochs, value head"
    with pytest.raises(Killed):
        train(make(case), dies_after=3)
    kept = make(case)
    (*_, last) = steps_in(kept.run_folder)
    found = read_snapshot(last)
    cost = {name.replace("/pre_update", "/survey"): total for name, total in found.facts["cost"].items()}
    assert cost["flops/survey"] > 0 and "flops/pre_update" not in cost
    label = {"step": found.facts["step"], "score": None}
    write_snapshot(last, Snapshot(found.tensors, found.facts | {"cost": cost}), label)
    train(kept, resume=True)
    assert Left.by(kept).cost == whole(case).cost


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": damage_byte,
    "cut": lambda path: (path / "facts.json").write_bytes((path / "facts.json").read_bytes()[:-10]),
    "missing": lambda path: (path / "tensors.safetensors").unlink(),
    "no index": lambda path: (path / "index.json").write_text("{"),
    "no JSON object": lambda path: (path / "index.json").write_text("[]"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_told(name: str, tmp_path: Path) -> None:
    written = Snapshot({"a": torch.arange(3.0)}, {"b": [0.1, float("inf")]})
    write_snapshot(tmp_path / "one", written, {"step": 1})
    found = read_snapshot(tmp_path / "one")
    assert found.facts == written.facts and torch.equal(found.tensors["a"], written.tensors["a"])
    DAMAGES[name](tmp_path / "one")
    with pytest.raises(CheckpointError, match=r"damaged|missing|cannot be read"):
        read_snapshot(tmp_path / "one")


def test_a_damaged_checkpoint_is_passed_over(make: Make, whole: Whole, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = whole("llama")
    with pytest.raises(Killed):
        train(make(), dies_after=5)
    resumed = make()
    last = steps_in(resumed.run_folder)[-1]
    assert last.name == "step-00000004"
    damage_byte(last)
    train(resumed, resume=True)
    assert "passed over step-00000004, the checkpoint before it is used" in caplog.text
    assert_same(Left.by(resumed), undisturbed)


def test_without_any_whole_checkpoint_training_begins_again(
    make: Make, whole: Whole, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = whole("llama")
    with pytest.raises(Killed):
        train(make(), dies_after=5)
    resumed = make()
    for path in steps_in(resumed.run_folder):
        damage_byte(path)
    train(resumed, resume=True)
    assert "holds no checkpoint that can be used: training begins again" in caplog.text
    assert_same(Left.by(resumed), undisturbed)


def test_a_checkpoint_whose_lines_are_lost_is_passed_over(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        train(make(), dies_after=5)
    resumed = make()
    metrics = resumed.run_folder / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:3]))
    _, taken = resumed.begin(evaluations, ["a", "b"], True)
    assert taken == 2 and "metrics.jsonl has" in caplog.text
    assert [line["step"] for line in untimed(resumed.run_folder)] == [1, 2]


def test_what_a_killed_write_left_is_removed(make: Make) -> None:
    with pytest.raises(Killed):
        train(make(), dies_after=3)
    resumed = make()
    (resumed.folder / ".writing-x").mkdir()
    (resumed.folder / ".writing-x" / "tensors.safetensors").write_bytes(b"half")
    train(resumed, resume=True)
    assert not list(resumed.folder.glob(".writing*"))


def test_the_last_ones_and_the_best_stay(make: Make) -> None:
    kept = make("llama", "run", "checkpoint.keep=2", "checkpoint.best=reward/mean", every=1)
    kept.begin(evaluations, ["a", "b"], False)
    for step, reward in enumerate([0.1, 0.9, float("nan"), 0.9, 0.3, 0.2], start=1):
        kept.after_step(step, {"reward/mean": reward}, 6)
    assert [int(path.name[5:]) for path in steps_in(kept.run_folder)] == [2, 5, 6]
    here = weights(kept.trainer)
    kept.trainer.run(1, lambda step, record: None)
    written: list[dict[str, Tensor]] = []
    kept.write_best(lambda: written.append(weights(kept.trainer)))
    assert all(torch.equal(here[name], value) for name, value in written[0].items())
    kept.remove()
    assert not kept.folder.exists()


def test_the_score_is_a_mean_since_the_last_checkpoint_also_over_a_stop(make: Make) -> None:
    changes = ("checkpoint.keep=1", "checkpoint.best=reward/mean", "checkpoint.best_is=lowest")
    kept = make("llama", "run", *changes, every=3)
    kept.begin(evaluations, ["a", "b"], False)
    for step, reward in enumerate([0.5, 0.4, 0.9, 0.2], start=1):
        kept.after_step(step, {"reward/mean": reward}, 9)
    kept.save(4)  # a signal
    resumed = make("llama", "run", *changes, every=3)
    _, taken = resumed.begin(evaluations, ["a", "b"], True)
    assert taken == 4
    for step, reward in ((5, 0.8), (6, 1.4), (7, 0.0), (8, 0.0), (9, 2.7)):
        resumed.after_step(step, {"reward/mean": reward}, 9)
    assert [int(path.name[5:]) for path in steps_in(resumed.run_folder)] == [3, 9]  # 0.6, 0.8, 0.9


def test_other_models_or_processes_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(make(), dies_after=3)
    with pytest.raises(CheckpointError, match="the student before training is not what the run began with"):
        make(student="other").begin(evaluations, [], True)
    monkeypatch.setattr("gkd_rl.pipeline.checkpoints.processes", lambda: 2)
    with pytest.raises(CheckpointError, match="1 processes and there are 2"):
        make().begin(evaluations, [], True)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make()
    kept.begin(evaluations, [], False)

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("gkd_rl.training.state.save_file", full)
    kept.after_step(2, {}, STEPS)
    assert "checkpoint of step 2 was not written" in caplog.text
    assert [path.name for path in kept.folder.iterdir() if path.name.startswith((".", "step"))] == ["step-00000000"]


def test_rewards_that_are_kept_by_text_go_along(make: Make) -> None:
    """A model's reward of a text depends in its last digits on the batch it was computed in."""
    kept = make()
    kept.begin(evaluations, [], False)
    records: list[StepRecord] = []
    kept.trainer.run(1, lambda step, record: records.append(record))
    kept.save(1)
    resumed = make()
    resumed.begin(evaluations, [], True)
    assert resumed.trainer.reward is not None and kept.trainer.reward is not None
    there = resumed.trainer.reward.cached_rewards()
    assert there == kept.trainer.reward.cached_rewards()
