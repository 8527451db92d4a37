"""Separate gradients of the two terms: their sum is the gradient of an ordinary step, and their metrics are right."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from conftest import KINDS, MakeTrainer, assert_close, gradient_of, letters, logits_of

from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.config.choices import AlphaSchedule
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Source

FREE = ("trainer.max_grad_norm=1e9", "trainer.warmup_steps=0", "trainer.micro_batch_size=3")
MEASURED = ("gradient/", "kl_to_", "alpha_effective")


def measured(metrics: dict[str, float]) -> set[str]:
    return {name for name in metrics if name.startswith(MEASURED)}


def with_alpha(trainer: Trainer, alpha: float, every: int, kind: AlphaSchedule = AlphaSchedule.constant) -> Trainer:
    trainer.alpha = Schedule(kind, alpha, trainer.alpha.steps)
    trainer.settings = dataclasses.replace(trainer.settings, diagnose_every=every)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "credit"),
    [
        ("policy_gradient=reinforce", "reward_to_go"),
        ("policy_gradient=ppo policy_gradient.epochs=1", "none"),
        pytest.param("policy_gradient=reinforce", "none", marks=pytest.mark.exhaustive),
        pytest.param("policy_gradient=ppo policy_gradient.epochs=1", "reward_to_go", marks=pytest.mark.exhaustive),
    ],
)
def test_separate_gradients_add_up_to_the_ordinary_step(
    kind: str, method: str, credit: str, make_trainer: MakeTrainer
) -> None:
    """At alpha = 0.3, with both terms, and at 0 and 1 with one."""
    trainer = make_trainer(
        "alpha=0.5", *FREE, *method.split(), f"divergence.kd_credit={credit}", reward=letters, kind=kind
    )
    for alpha in (0.3, 0.0, 1.0):
        ordinary, plain = gradient_of(with_alpha(trainer, alpha, every=0))
        separate, record = gradient_of(with_alpha(trainer, alpha, every=1))
        if ordinary.norm() == 0:
            assert separate.norm() == 0
            continue
        assert_close(separate, ordinary, 1e-6)
        assert not measured(plain.metrics)
        shared = {name for name in plain.metrics if not name.startswith(("time/", "flops/"))}
        assert {name: record.metrics[name] for name in shared} == pytest.approx({n: plain.metrics[n] for n in shared})


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_cosine_are_those_of_the_two_gradients(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", *FREE, reward=letters, kind=kind)
    reward, _ = gradient_of(with_alpha(trainer, 0.0, every=0))
    divergence, _ = gradient_of(with_alpha(trainer, 1.0, every=0))
    whole, record = gradient_of(with_alpha(trainer, 0.3, every=1))
    metrics = record.metrics
    assert metrics["gradient/reward_norm"] == pytest.approx(float(reward.norm()), rel=1e-5)
    assert metrics["gradient/divergence_norm"] == pytest.approx(float(divergence.norm()), rel=1e-5)
    cosine = torch.cosine_similarity(reward, divergence, dim=0)
    assert metrics["gradient/cosine"] == pytest.approx(float(cosine), abs=1e-5)
    own, other = 0.3 * float(divergence.norm()), 0.7 * float(reward.norm())
    assert metrics["gradient/divergence_share"] == pytest.approx(own / (own + other), rel=1e-5)
    assert metrics["alpha_effective"] == 0.3
    assert_close(whole, 0.7 * reward + 0.3 * divergence)


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_term_there_is_only_its_norm(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", *FREE, reward=letters, kind=kind)
    for alpha, term in ((0.0, "reward"), (1.0, "divergence")):
        _, record = gradient_of(with_alpha(trainer, alpha, every=1))
        found = {name for name in measured(record.metrics) if not name.startswith("kl_to")}
        assert found == {f"gradient/{term}_norm"}


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_balanced_alpha_is_the_share_of_the_norm_at_every_step(alpha: float, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(f"alpha={alpha}", "alpha_schedule=balanced", *FREE)
    weights = set()
    for step in range(5):
        metrics = trainer.step(step).metrics
        assert metrics["alpha"] == alpha
        assert metrics["gradient/reward_norm"] > 0
        assert metrics["gradient/divergence_share"] == pytest.approx(alpha, rel=1e-5)
        assert "kl_to_initial" not in metrics
        a = metrics["alpha_effective"]
        own, other = a * metrics["gradient/divergence_norm"], (1 - a) * metrics["gradient/reward_norm"]
        assert own / (own + other) == pytest.approx(alpha, rel=1e-5)
        weights.add(a)
    assert len(weights) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_alpha_uses_the_weight_that_it_logs(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.4", *FREE, reward=letters, kind=kind)
    reward, _ = gradient_of(with_alpha(trainer, 0.0, every=0))
    divergence, _ = gradient_of(with_alpha(trainer, 1.0, every=0))
    whole, record = gradient_of(with_alpha(trainer, 0.4, every=0, kind=AlphaSchedule.balanced))
    a = record.metrics["alpha_effective"]
    assert_close(whole, (1 - a) * reward + a * divergence)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_leave_alpha_unchanged(kind: str, make_trainer: MakeTrainer) -> None:
    """The gradient of the reward term is 0: the divergence term keeps the weight alpha."""

    def equal(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [1.0] * len(completions)

    trainer = make_trainer("alpha=0.4", "alpha_schedule=balanced", *FREE, reward=equal, kind=kind)
    whole, record = gradient_of(trainer)
    divergence, _ = gradient_of(with_alpha(trainer, 1.0, every=0))
    assert record.metrics["alpha_effective"] == 0.4
    assert record.metrics["gradient/reward_norm"] == 0
    assert "gradient/cosine" not in record.metrics
    assert_close(whole, 0.4 * divergence)


def test_diagnosed_steps_are_every_few_steps_and_the_last(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", *FREE, "trainer.diagnose_every=3", "trainer.steps=6")
    metrics = [trainer.step(step).metrics for step in range(6)]
    every = {"gradient/reward_norm", "gradient/divergence_norm", "gradient/cosine", "gradient/divergence_share"}
    every |= {"alpha_effective", "kl_to_initial", "kl_to_teacher"}
    assert [measured(one) for one in metrics] == [every, set(), set(), every, set(), every]
    assert metrics[0]["kl_to_initial"] == pytest.approx(0, abs=1e-6)
    assert metrics[3]["kl_to_initial"] > 1e-4
    assert metrics[5]["kl_to_initial"] > 1e-4
    assert all(metrics[step]["kl_to_teacher"] > 0.01 for step in (0, 3, 5))


def test_kls_are_logged_for_student_rollouts_only(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", "lmbda=0.5", *FREE, "trainer.diagnose_every=1")
    sources = set()
    for step in range(6):
        record = trainer.step(step)
        of_student = record.rollout.source is Source.student
        sources.add(record.rollout.source)
        assert ("kl_to_initial" in record.metrics) is ("kl_to_teacher" in record.metrics) is of_student
        assert ("gradient/reward_norm" in record.metrics) is of_student
        assert "gradient/divergence_norm" in record.metrics
    assert len(sources) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_kls_are_reverse_kls_per_token(kind: str, make_trainer: MakeTrainer) -> None:
    """Σ_v q (log q - log p) from transformers' logits, mean over the tokens of the step, before the update."""
    trainer = make_trainer(
        "alpha=0.5", *FREE, "trainer.diagnose_every=1", "trainer.learning_rate=0.02", reward=letters, kind=kind
    )
    trainer.step(0)
    _, record = gradient_of(trainer, step=1)
    student, teacher, rollout = trainer.student, trainer.models.teacher, record.rollout
    initial, without = trainer.models.initial, nullcontext()
    assert teacher is not None and initial is not None
    if isinstance(student, AdaptedModel):
        initial, without = student, student.adapter.disable_adapter()

    def logp(model: HiddenStateModel) -> torch.Tensor:
        return logits_of(model, rollout).log_softmax(-1)[rollout.mask_BT]

    with torch.no_grad():
        own, of_teacher = logp(student), logp(teacher)
        with without:
            of_initial = logp(initial)
        for name, other in (("kl_to_initial", of_initial), ("kl_to_teacher", of_teacher)):
            expected = (own.exp() * (own - other)).sum(-1).mean()
            assert record.metrics[name] == pytest.approx(float(expected), rel=1e-4)


def test_without_a_teacher_the_kl_to_the_initial_student_is_logged(make_trainer: MakeTrainer) -> None:
    metrics = make_trainer("experiment=rl", *FREE, "trainer.diagnose_every=1").step(0).metrics
    assert measured(metrics) == {"gradient/reward_norm", "kl_to_initial"}
