"""The expected gradient of every estimator, over ALL completions, against the gradient of an exact objective.

tests/enumeration.py computes a training step on every batch that can be drawn and weighs its loss with the probability
of the batch; tests/exact.py has the objectives as plain sums. The `check_*` functions raise AssertionError, so that
tests/losses/test_mutations.py can call them on defective code. `python tests/losses/test_gradients.py` writes the
tables of docs/estimators.md.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from accelerate import Accelerator
from conftest import KINDS, essential
from enumeration import CompletionSpace, StepRecipe, expected_losses, in_float64
from estimators import DESCENDS, PAGE, estimator_table, named_gradients, policy_table, sampled_gradients, with_tables
from exact import TOLERANCE, assert_same
from reward_cases import CASES, SEQUENCE_SUM
from torch import Tensor

from gkd_rl.config.choices import DivergenceName, DivergenceReduction, DivergenceScale, KdCredit
from gkd_rl.losses import policy_gradient
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.objective import Objective
from gkd_rl.losses.policy_gradient import CreditSettings
from gkd_rl.training.optimization import TermGradients

FAMILY = {
    "forward_kl": TokenDivergence(DivergenceName.forward_kl),
    "reverse_kl": TokenDivergence(DivergenceName.reverse_kl),
    "tvd": TokenDivergence(DivergenceName.tvd),
    "jsd_0.9_soft": TokenDivergence(DivergenceName.jsd, 0.9, temperature=1.7),
    "skew_kl": TokenDivergence(DivergenceName.skew_kl, 0.1),
    "skew_kl_unit": TokenDivergence(DivergenceName.skew_kl, 0.3, scale=DivergenceScale.unit),
    "reverse_skew_kl": TokenDivergence(DivergenceName.reverse_skew_kl, 0.1),
    "reverse_skew_kl_unit": TokenDivergence(DivergenceName.reverse_skew_kl, 0.3, scale=DivergenceScale.unit),
    "reverse_kl_top_2": TokenDivergence(DivergenceName.reverse_kl, teacher_top_k=2),
    "jsd_0.5_top_2": TokenDivergence(DivergenceName.jsd, 0.5, teacher_top_k=2),
} | {
    f"jsd_{beta}_{scale.value}": TokenDivergence(DivergenceName.jsd, beta, scale=scale)
    for beta in (0.1, 0.5, 0.9)
    for scale in DivergenceScale
}


@cache
def space_of(kind: str, vocabulary: int = 3, max_tokens: int = 3) -> CompletionSpace:
    return CompletionSpace(kind, vocabulary, max_tokens)


def check_divergence(kind: str, name: str, kd: KdCredit, reduction: DivergenceReduction, batch: str = "one") -> None:
    """kd_credit=none: the gradient of Σ_y stop(p(y)) D(y); reward_to_go: of Σ_y p(y) D(y)."""
    divergence = FAMILY[name]
    space = (
        space_of(kind) if divergence.teacher_top_k is None else space_of(kind, 4, 2)
    )  # two most probable tokens, and two others
    draws = space.draws(batch)
    settings = CreditSettings(1, kd_credit=kd, divergence_reduction=reduction)
    recipe = StepRecipe(Objective(reduction, SEQUENCE_SUM), settings, divergence, rewarded=False)
    exact = space.expectations(draws).divergence(divergence, reduction, fixed=kd is KdCredit.none)
    assert_same(space.gradient(expected_losses(space, draws, recipe).loss(1.0)), space.gradient(exact))


def check_credit_is_for_later_positions(kind: str) -> None:
    """The credit of sequence_sum is Σ_{s > t} D_s. Adding D_t would keep the mean and increase the variance."""
    space = space_of(kind)
    _, pre_update = space.terms_of(FAMILY["reverse_kl"])
    assert pre_update.divergence_BT is not None
    reduction = DivergenceReduction.sequence_sum
    settings = CreditSettings(1, kd_credit=KdCredit.reward_to_go, divergence_reduction=reduction)
    found_BT = policy_gradient.token_divergence_credit(settings, space.rollout, pre_update, (0.0, 1))
    assert found_BT is not None
    for row, completion in enumerate(space.oracle.completions):
        values = pre_update.divergence_BT[row, : len(completion)].tolist()
        for t in range(len(completion)):
            assert abs(float(found_BT[row, t]) - sum(values[t + 1 :])) < TOLERANCE, "credit for an earlier position"


def check_alpha(kind: str, kd: KdCredit) -> None:
    """(1 - α) g_r + α g_D, by the loss and by `TermGradients`; balanced: α is the share of the norm."""
    space, reduction = space_of(kind), DivergenceReduction.sequence_mean
    draws, divergence = space.draws("one"), FAMILY["jsd_0.9_unit"]
    settings = CreditSettings(1, kd_credit=kd, divergence_reduction=reduction)
    recipe = StepRecipe(Objective(reduction, SEQUENCE_SUM), settings, divergence)
    expectations = space.expectations(draws)
    g_r = space.gradient(-expectations.reward())
    g_D = space.gradient(expectations.divergence(divergence, reduction, fixed=kd is KdCredit.none))
    whole = expected_losses(space, draws, recipe)
    for alpha in (0.0, 0.3, 1.0):
        assert_same(space.gradient(whole.loss(alpha)), (1 - alpha) * g_r + alpha * g_D)
    for alpha, balanced in ((0.0, False), (0.3, False), (0.3, True), (0.8, True), (1.0, True)):
        term_gradients = TermGradients(space.parameters, Accelerator(cpu=True))
        for part in draws.indices.split(16):  # two micro-batches
            term_gradients.backward(expected_losses(space, replace(draws, indices=part), recipe, fresh_forward=True))
        with in_float64():
            metrics = term_gradients.set_gradients(alpha, balanced)
        found = torch.cat([one.grad.flatten() for one in space.parameters if one.grad is not None])
        a = metrics["alpha_effective"]
        assert_same(found, (1 - a) * g_r + a * g_D)
        share = float(a * g_D.norm() / ((1 - a) * g_r.norm() + a * g_D.norm()))
        assert abs((share if balanced else a) - alpha) < TOLERANCE
        assert abs(metrics["gradient/divergence_share"] - share) < TOLERANCE
        assert abs(metrics["gradient/cosine"] - float(torch.cosine_similarity(g_r, g_D, dim=0))) < TOLERANCE
        for name, gradient in (("reward", g_r), ("divergence", g_D)):
            assert abs(metrics[f"gradient/{name}_norm"] / float(gradient.norm()) - 1) < TOLERANCE


def check_policy_gradient(kind: str, name: str) -> tuple[Tensor, Tensor]:
    """The expected gradient of a case, and ∇E[r] over the same batches."""
    case, space = CASES[name], space_of(kind)
    draws = space.draws(case.batch)
    fields = {"divergence_reduction": DivergenceReduction.sequence_mean, "surrogate_reduction": SEQUENCE_SUM}
    recipe = StepRecipe(Objective(**fields | case.objective), CreditSettings(1, **case.credit), **case.recipe)
    expectations = space.expectations(draws, recipe.temperature)
    found = -space.gradient(expected_losses(space, draws, recipe).reward)
    exact = space.gradient(case.exact(expectations, space))
    reward = space.gradient(expectations.reward())
    assert_same(found, exact, reward if case.ascends == "0" else None)
    return found, reward


def check_sampled_kl(kind: str, max_tokens: int) -> None:
    space = space_of(kind, 3, max_tokens)
    found, exact = sampled_gradients(space), named_gradients(space)
    assert found.keys() == DESCENDS.keys()
    for use, name in DESCENDS.items():
        assert_same(found[use], exact[name], exact["R*"])
    same = max_tokens == 1
    for one, other in (("R", "R*"), ("F", "F*")):
        assert (float((exact[one] - exact[other]).norm()) < TOLERANCE) is same


@pytest.mark.parametrize("kind", KINDS)
def test_all_completions_are_enumerated(kind: str) -> None:
    for vocabulary, max_tokens, count in ((3, 3, 15), (4, 2, 13), (3, 1, 3)):
        space = space_of(kind, vocabulary, max_tokens)
        terms, _ = space.terms_of(None)
        probabilities = terms.logp_BT.sum(dim=1).exp()
        assert space.size == count
        assert probabilities[:count].sum().item() == pytest.approx(1.0, abs=1e-12)
        assert probabilities[count:].sum().item() == pytest.approx(1.0, abs=1e-12)
        assert probabilities.min() > 1e-4
        assert space.rollout.truncated_B.tolist() == space.oracle.truncated_B.tolist()


@pytest.mark.parametrize("reduction", DivergenceReduction, ids=lambda one: one.value)
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence(kind: str, name: str, reduction: DivergenceReduction) -> None:
    for kd in KdCredit:
        check_divergence(kind, name, kd, reduction)


@pytest.mark.parametrize(
    "reduction", essential(DivergenceReduction, DivergenceReduction.sequence_mean), ids=lambda one: one.value
)
@pytest.mark.parametrize("name", ["forward_kl", "jsd_0.9_unit", "reverse_kl_top_2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_of_two_completions(kind: str, name: str, reduction: DivergenceReduction) -> None:
    batches = ("pair", "prompts") if reduction is DivergenceReduction.token_mean else ("pair",)
    for kd, batch in itertools.product(KdCredit, batches):
        check_divergence(kind, name, kd, reduction, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_credit_is_for_later_positions(kind: str) -> None:
    check_credit_is_for_later_positions(kind)


@pytest.mark.parametrize("kd", KdCredit, ids=lambda one: one.value)
@pytest.mark.parametrize("kind", KINDS)
def test_alpha_and_balanced_alpha(kind: str, kd: KdCredit) -> None:
    check_alpha(kind, kd)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_gradient(kind: str, name: str) -> None:
    check_policy_gradient(kind, name)


@pytest.mark.parametrize("max_tokens", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sampled_kl(kind: str, max_tokens: int) -> None:
    check_sampled_kl(kind, max_tokens)


def tables() -> dict[str, str]:
    found = {name: check_policy_gradient("t5", name) for name in CASES}
    ascends = {name: case.ascends for name, case in CASES.items()}
    return {
        "policy gradients": policy_table(ascends, found),
        "sampled KL": estimator_table({max_tokens: space_of("t5", 3, max_tokens) for max_tokens in (1, 3)}),
    }


def test_the_page_has_the_computed_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, tables()) == page, "write them with: python tests/losses/test_gradients.py"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
