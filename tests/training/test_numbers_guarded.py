"""Numbers that go wrong: skipped, counted, warned of, and in the end the run stops; a sound run has no warning."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakePrompts, MakeRollout, MakeTrainer, config_of, letters
from safetensors.torch import load_file
from torch import Tensor

from gkd_rl.config.launch import StopRequest
from gkd_rl.errors import DivergedError
from gkd_rl.outputs.tracking import Listing, Tracker
from gkd_rl.pipeline.checkpoints import Checkpoints
from gkd_rl.pipeline.experiment import _train
from gkd_rl.training.cost import CostTotals
from gkd_rl.training.state import trained
from gkd_rl.training.step_metrics import Guard, GuardLimits, all_finite, guard_metrics, ratio_error
from gkd_rl.training.trainer import StepRecord, Trainer
from reward_models.composite import Composite, Scores

SOUND = {
    "guard/skipped": 0.0,
    "grad_norm": 1.0,
    "divergence": 0.1,
    "student_data": 1.0,
    "entropy": 2.0,
    "completion_tokens": 10.0,
    "guard/empty_share": 0.0,
    "guard/reward_outside_share": 0.0,
    "guard/ratio_error": 0.0,
}
LIMITS = GuardLimits(
    max_skipped=2, negative_divergence=1e-4, ratio=0.1, entropy_share=0.1, length_growth=3.0, baseline_steps=2
)
PPO = ("policy_gradient=ppo", "policy_gradient.epochs=2", "policy_gradient.value.hidden_size=4", "alpha=0")


def looked(*changes: dict[str, float], limits: GuardLimits = LIMITS) -> tuple[Guard, list[float]]:
    """A guard after steps with these numbers, and how many warnings each step is one for."""
    guard = Guard(limits)
    return guard, [guard.check(step, SOUND | one)["guard/warnings"] for step, one in enumerate(changes, start=1)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"divergence": -2e-4}, "the divergence is below 0"),
        ({"guard/empty_share": 0.25}, "completions without any token"),
        ({"guard/reward_outside_share": 0.5}, "outside the range that their component declares"),
        ({"guard/ratio_error": 0.11}, "above guard.ratio=0.1"),
        ({"entropy": 0.19}, "entropy below guard.entropy_share=0.1 of its first 2"),
        ({"completion_tokens": 31.0}, "longer than guard.length_growth=3 times their first 10 tokens"),
        ({"guard/skipped": 1.0, "grad_norm": math.nan}, "an update was skipped"),
    ],
)
def test_each_warning_at_its_limit(change: dict[str, float], says: str, caplog: pytest.LogCaptureFixture) -> None:
    guard, warnings = looked({}, {}, {}, change, {}, change)
    assert warnings == [0, 0, 0, 1, 0, 1]
    (record,) = caplog.records  # said once
    assert record.levelno == logging.WARNING and says in record.message and record.message.startswith("step 4: ")
    (line,) = guard.summary_lines(6)
    assert says in line and line.endswith("2 of 6 steps, first in step 4")


def test_at_the_limits_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    edge = {"divergence": -1e-4, "guard/ratio_error": 0.1, "entropy": 0.2, "completion_tokens": 30.0}
    guard, warnings = looked({}, {}, edge)
    assert warnings == [0, 0, 0] and not caplog.records and guard.summary_lines(3) == []


def test_without_limits_only_what_is_never_right_is_said() -> None:
    wrong = {"divergence": -9.0, "guard/ratio_error": 9.0, "entropy": 0.0, "completion_tokens": 900.0}
    assert looked({}, {}, wrong, limits=GuardLimits())[1] == [0, 0, 0]


def test_the_baseline_is_of_student_rollouts_and_of_finite_numbers() -> None:
    data = {"student_data": 0.0, "entropy": 0.01, "completion_tokens": 99.0}
    guard, warnings = looked(data, {"entropy": math.nan}, {"entropy": 1.0}, {"entropy": 3.0}, data, {"entropy": 0.1})
    assert warnings == [0, 0, 0, 0, 0, 1]
    assert guard.baseline["entropy"] == [1.0, 3.0]


def test_skipped_steps_in_a_row_end_the_stage() -> None:
    skipped = {"guard/skipped": 1.0}
    guard, _ = looked(skipped, {}, skipped)
    guard.stop_if_exhausted(3, "")
    guard.check(4, SOUND | {"guard/skipped": 2.0})
    with pytest.raises(DivergedError, match=r"steps 3 to 4 .* \(guard.max_skipped=2\). It is here. Lower the learning"):
        guard.stop_if_exhausted(4, "It is here. ")
    assert guard.skipped == 3
    assert not looked(*[skipped] * 9, limits=GuardLimits())[0].exhausted


def test_a_guard_goes_on_from_its_state() -> None:
    guard, _ = looked({}, {"guard/skipped": 1.0})
    other = Guard(LIMITS)
    other.load(json.loads(json.dumps(guard.state())))
    assert other == guard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_needs_finite_numbers(value: float) -> None:
    assert all_finite(1.0, 2.0) and not all_finite(value, 1.0) and not all_finite(1.0, 1.0, value)


def test_empty_completions_and_rewards_outside(make_prompts: MakePrompts, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(make_prompts([[3], [4]]), [[3, 1], [4], [], [5]], per_prompt=2)
    assert guard_metrics(rollout, None, {"r": (0, 1)}) == {"guard/empty_share": 0.25}
    scores = Scores([0.0] * 4, {"r": [0.0, 1.0 + 1e-9, 1.1, -0.1], "free": [9.0] * 4}, [False, False, False, True])
    found = guard_metrics(rollout, scores, {"r": (0.0, 1.0)})
    assert found == {"guard/empty_share": 0.25, "guard/reward_outside_share": 0.25}


def test_components_declare_their_bounds() -> None:
    def free(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(prompts)

    class Bounded:
        bounds = (0.0, 1.0)
        __call__ = staticmethod(free)

    assert Composite({"a": free, "b": Bounded()}, {"a": 1.0, "b": 1.0}).bounds() == {"b": (0.0, 1.0)}


def test_the_ratio_is_a_mean_over_valid_tokens() -> None:
    written = torch.tensor([[0.0, -1.0], [-2.0, 5.0]])
    trained_BT = written + torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert ratio_error(written, trained_BT, mask)["guard/ratio_error"] == pytest.approx(1 / 3)


# --- in a trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "llama", "t5 with LoRA", "llama with LoRA"])
def test_the_ratio_of_the_first_epoch_is_one_without_dropout_and_not_with_it(
    kind: str, make_trainer: MakeTrainer
) -> None:
    still = make_trainer("trainer.diagnose_every=1", kind=kind, reward=letters).step(0).metrics
    assert still["guard/ratio_error"] < 1e-5 and still["guard/warnings"] == 0
    moved = make_trainer("trainer.diagnose_every=1", kind=kind, reward=letters, dropout=0.5).step(0).metrics
    assert moved["guard/ratio_error"] > 0.1 and moved["guard/warnings"] == 1


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for _, parameter in trained(trainer)]


def spoil(trainer: Trainer, steps: set[int], what: str) -> None:
    """Make the loss, or the student's or value head's gradient, of some steps (from 0) NaN."""
    take, accumulate = trainer.step, trainer._accumulate
    now = [0]

    def counted(step: int) -> StepRecord:
        now[0] = step
        return take(step)

    def spoilt(work: Any, keep: bool) -> tuple[Tensor, dict[str, float]]:
        first, sums = accumulate(work, keep)
        if now[0] in steps:
            if what == "loss":
                sums["loss"] = math.inf
            else:
                assert trainer.critic is not None or what == "gradient"
                module = trainer.student if what == "gradient" else trainer.critic.head  # pyright: ignore
                parameter = next(one for one in module.parameters() if one.grad is not None)
                parameter.grad.view(-1)[0] = math.nan  # pyright: ignore[reportOptionalMemberAccess]
        return first, sums

    trainer.step, trainer._accumulate = counted, spoilt


@pytest.mark.parametrize("what", ["loss", "gradient", "value gradient"])
def test_what_is_not_finite_is_not_learnt_from(what: str, make_trainer: MakeTrainer) -> None:
    changes = PPO if what == "value gradient" else ("trainer.warmup_steps=0",)
    trainer = make_trainer(*changes, "trainer.warmup_steps=0", reward=letters)
    spoil(trainer, {1}, what)
    trainer.step(0)
    before, state = weights(trainer), trainer.optimizer.state_dict()["state"][0]["step"].clone()
    record = trainer.step(1)
    assert record.metrics["guard/skipped"] == (2.0 if what == "value gradient" else 1.0)  # updates, one each epoch
    assert all(torch.equal(one, other) for one, other in zip(before, weights(trainer), strict=True))
    assert torch.equal(state, trainer.optimizer.state_dict()["state"][0]["step"])
    assert trainer.step(2).metrics["guard/skipped"] == 0
    assert not all(torch.equal(one, other) for one, other in zip(before, weights(trainer), strict=True))


Make = Callable[..., Checkpoints]


@pytest.fixture
def make(make_trainer: MakeTrainer, tmp_path: Path) -> Make:
    """A run whose guard stops it after two skipped steps."""

    def build() -> Checkpoints:
        trainer = make_trainer("guard.max_skipped=2", reward=letters)
        tracker = Tracker(tmp_path / "run", "disabled", Listing("p", None, "n"), {})
        return Checkpoints(tmp_path / "run", config_of().checkpoint, 0, trainer, CostTotals(), tracker, {})

    return build


def test_a_run_that_cannot_go_on_leaves_its_last_batch(make: Make) -> None:
    kept, config = make(), config_of("trainer.steps=9")
    spoil(kept.trainer, {1, 3, 4}, "loss")
    with pytest.raises(DivergedError, match=r"steps 4 to 5 .*The last batch is in .*post_mortem"):
        _train(config, kept, 0, StopRequest())
    lines = (kept.run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["guard/skipped"] for line in lines] == [0, 1, 0, 1, 1]
    facts = json.loads((kept.run_folder / "post_mortem" / "facts.json").read_text(encoding="utf-8"))
    tensors = load_file(kept.run_folder / "post_mortem" / "tensors.safetensors")
    assert facts["step"] == 5 and facts["metrics"]["loss"] == "inf"
    assert len(facts["completions"]) == len(tensors["ids_BT"]) == len(facts["rewards"]["stub"])
    for name, parameter in trained(kept.trainer):
        assert torch.equal(tensors[f"weights/{name}"], parameter)


def test_the_limits_of_the_configuration_reach_the_guard(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("guard.ratio=0.7", "guard.length_growth=null", "guard.baseline_steps=3")
    wanted = config_of().guard
    assert trainer.guard.limits == replace(
        GuardLimits(wanted.max_skipped, wanted.negative_divergence, 0.7, wanted.entropy_share), baseline_steps=3
    )
