"""Alpha over a run: every kind by hand, which terms a run has, and that a step asks only those that its alpha needs."""

from __future__ import annotations

import itertools

import pytest
from conftest import MakeTrainer, share_of_a

from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.config.choices import AlphaSchedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(AlphaSchedule.constant, 0.3, 3), [0.3, 0.3, 0.3]),
        (Schedule(AlphaSchedule.balanced, 0.3, 3), [0.3, 0.3, 0.3]),
        (Schedule(AlphaSchedule.linear, 0.0, 5, start=1.0), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (Schedule(AlphaSchedule.linear, 0.8, 3, start=0.2), [0.2, 0.5, 0.8]),
        (Schedule(AlphaSchedule.warmup, 0.2, 8, start=1.0, until=0.5), [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2]),
        (Schedule(AlphaSchedule.warmup, 1.0, 5, start=0.0, until=0.5), [0.0, 0.4, 0.8, 1.0, 1.0]),
        (Schedule(AlphaSchedule.switch, 0.0, 4, start=1.0, until=0.5), [1.0, 1.0, 0.0, 0.0]),
        (Schedule(AlphaSchedule.switch, 0.0, 5, start=1.0, until=0.5), [1.0, 1.0, 1.0, 0.0, 0.0]),
        (Schedule(AlphaSchedule.switch, 0.5, 4, start=0.25, until=0.25), [0.25, 0.5, 0.5, 0.5]),
        (Schedule(AlphaSchedule.linear, 0.0, 1, start=1.0), [1.0]),
        (Schedule(AlphaSchedule.warmup, 0.0, 1, start=1.0, until=0.5), [1.0]),
        (Schedule(AlphaSchedule.switch, 0.0, 1, start=1.0, until=0.5), [1.0]),
        (Schedule(AlphaSchedule.constant, 0.0, 1), [0.0]),
    ],
    ids=str,
)
def test_values(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule(step) for step in range(schedule.steps)] == pytest.approx(expected, abs=1e-12)
    assert schedule.balanced is (schedule.kind is AlphaSchedule.balanced)


@pytest.mark.parametrize("kind", list(AlphaSchedule))
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_run_has_the_terms_of_its_steps(kind: AlphaSchedule, steps: int) -> None:
    for start, alpha, until in itertools.product((0.0, 0.4, 1.0), (0.0, 0.4, 1.0), (0.1, 0.5, 0.9)):
        schedule = Schedule(kind, alpha, steps, start, until)
        values = [schedule(step) for step in range(steps)]
        assert schedule.has_reward is any(value < 1 for value in values), schedule
        assert schedule.has_divergence is any(value > 0 for value in values), schedule
        assert schedule.reaches_zero is any(value == 0 for value in values), schedule


def test_distil_first_then_climb(make_trainer: MakeTrainer) -> None:
    """Switch: no reward is asked for before it, and no teacher after it."""
    rewarded: list[int] = []
    taught: list[int] = []

    def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        rewarded.append(step)
        return share_of_a(prompts, completions)

    trainer = make_trainer("experiment=sequential", "trainer.steps=6", "trainer.diagnose_every=1", reward=reward)
    assert trainer.models.teacher is not None
    trainer.models.teacher.register_forward_hook(lambda *_: taught.append(step))
    for step in range(6):
        metrics = trainer.step(step).metrics
        first = step < 3
        assert metrics["alpha"] == float(first)
        assert ("divergence" in metrics) is ("kl_to_teacher" in metrics) is first
        assert ("policy_gradient" in metrics) is ("reward/mean" in metrics) is not first
        assert (metrics["tokens/teacher_scored"] > 0) is first
    assert taught == [0, 1, 2]
    assert rewarded == [3, 4, 5]


def test_the_alpha_of_each_step_is_logged_and_weighs_its_terms(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.2", "alpha_schedule=linear", "alpha_schedule.start=0.8", "trainer.steps=3")
    for step, alpha in enumerate((0.8, 0.5, 0.2)):
        metrics = trainer.step(step).metrics
        assert metrics["alpha"] == pytest.approx(alpha)
        mixed = (1 - alpha) * metrics["policy_gradient"] + alpha * metrics["divergence"]
        assert metrics["loss"] == pytest.approx(mixed, rel=1e-5, abs=1e-7)
