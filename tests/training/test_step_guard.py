"""The guard: steps that are not finite are skipped, warnings are counted, a diverging run stops with a post-mortem."""

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
from gkd_rl.training.state import trained_parameters
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


def checked(*changes: dict[str, float], limits: GuardLimits = LIMITS) -> tuple[Guard, list[float]]:
    """A guard after steps with these metrics, and the number of warnings of each step."""
    guard = Guard(limits)
    return guard, [guard.check(step, SOUND | one)["guard/warnings"] for step, one in enumerate(changes, start=1)]


@pytest.mark.parametrize(
    ("change", "text"),
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
def test_each_warning_at_its_limit(change: dict[str, float], text: str, caplog: pytest.LogCaptureFixture) -> None:
    guard, warnings = checked({}, {}, {}, change, {}, change)
    assert warnings == [0, 0, 0, 1, 0, 1]
    (record,) = caplog.records  # logged once
    assert record.levelno == logging.WARNING and text in record.message and record.message.startswith("step 4: ")
    (line,) = guard.summary_lines(6)
    assert text in line and line.endswith("2 of 6 steps, first in step 4")


def test_at_the_limits_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    edge = {"divergence": -1e-4, "guard/ratio_error": 0.1, "entropy": 0.2, "completion_tokens": 30.0}
    guard, warnings = checked({}, {}, edge)
    assert warnings == [0, 0, 0] and not caplog.records and guard.summary_lines(3) == []


def test_without_limits_there_are_no_warnings_of_limits() -> None:
    wrong = {"divergence": -9.0, "guard/ratio_error": 9.0, "entropy": 0.0, "completion_tokens": 900.0}
    assert checked({}, {}, wrong, limits=GuardLimits())[1] == [0, 0, 0]


def test_the_baseline_is_of_student_rollouts_with_finite_metrics() -> None:
    data = {"student_data": 0.0, "entropy": 0.01, "completion_tokens": 99.0}
    guard, warnings = checked(data, {"entropy": math.nan}, {"entropy": 1.0}, {"entropy": 3.0}, data, {"entropy": 0.1})
    assert warnings == [0, 0, 0, 0, 0, 1]
    assert guard.baseline["entropy"] == [1.0, 3.0]


def test_skipped_steps_in_a_row_end_the_stage() -> None:
    skipped = {"guard/skipped": 1.0}
    guard, _ = checked(skipped, {}, skipped)
    guard.stop_if_exhausted(3, "")
    guard.check(4, SOUND | {"guard/skipped": 2.0})
    with pytest.raises(DivergedError, match=r"steps 3 to 4 .* \(guard.max_skipped=2\). It is here. Lower the learning"):
        guard.stop_if_exhausted(4, "It is here. ")
    assert guard.skipped == 3
    assert not checked(*[skipped] * 9, limits=GuardLimits())[0].exhausted


def test_a_guard_is_restored_from_its_state() -> None:
    guard, _ = checked({}, {"guard/skipped": 1.0})
    other = Guard(LIMITS)
    other.load(json.loads(json.dumps(guard.state())))
    assert other == guard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_needs_a_finite_loss_and_gradient(value: float) -> None:
    assert all_finite(1.0, 2.0) and not all_finite(value, 1.0) and not all_finite(1.0, 1.0, value)


def test_empty_completions_and_rewards_outside_their_range(
    make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
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
    sampling_BT = torch.tensor([[0.0, -1.0], [-2.0, 5.0]])
    training_BT = sampling_BT + torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert ratio_error(sampling_BT, training_BT, mask)["guard/ratio_error"] == pytest.approx(1 / 3)


# --- in a trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "llama", "t5 with LoRA", "llama with LoRA"])
def test_the_ratio_of_the_first_epoch_is_one_without_dropout_and_not_with_it(
    kind: str, make_trainer: MakeTrainer
) -> None:
    without_dropout = make_trainer("trainer.diagnose_every=1", kind=kind, reward=letters).step(0).metrics
    assert without_dropout["guard/ratio_error"] < 1e-5 and without_dropout["guard/warnings"] == 0
    with_dropout = make_trainer("trainer.diagnose_every=1", kind=kind, reward=letters, dropout=0.5).step(0).metrics
    assert with_dropout["guard/ratio_error"] > 0.1 and with_dropout["guard/warnings"] == 1


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for _, parameter in trained_parameters(trainer)]


def spoil(trainer: Trainer, steps: set[int], what: str) -> None:
    """Make the loss, or the student's or value head's gradient, of some steps (from 0) NaN."""
    take, accumulate = trainer.step, trainer._accumulate_gradients
    now = [0]

    def counted(step: int) -> StepRecord:
        now[0] = step
        return take(step)

    def spoiled(batch: Any, keep_teacher: bool) -> tuple[Tensor, dict[str, float]]:
        first, sums = accumulate(batch, keep_teacher)
        if now[0] in steps:
            if what == "loss":
                sums["loss"] = math.inf
            else:
                assert trainer.critic is not None or what == "gradient"
                module = trainer.student if what == "gradient" else trainer.critic.head  # pyright: ignore
                parameter = next(one for one in module.parameters() if one.grad is not None)
                parameter.grad.view(-1)[0] = math.nan  # pyright: ignore[reportOptionalMemberAccess]
        return first, sums

    trainer.step, trainer._accumulate_gradients = counted, spoiled


@pytest.mark.parametrize("what", ["loss", "gradient", "value gradient"])
def test_a_step_that_is_not_finite_is_skipped(what: str, make_trainer: MakeTrainer) -> None:
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


def test_a_diverged_run_writes_its_last_batch(make: Make) -> None:
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
    for name, parameter in trained_parameters(kept.trainer):
        assert torch.equal(tensors[f"weights/{name}"], parameter)


def test_the_limits_of_the_configuration_reach_the_guard(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("guard.ratio=0.7", "guard.length_growth=null", "guard.baseline_steps=3")
    wanted = config_of().guard
    assert trainer.guard.limits == replace(
        GuardLimits(wanted.max_skipped, wanted.negative_divergence, 0.7, wanted.entropy_share), baseline_steps=3
    )
