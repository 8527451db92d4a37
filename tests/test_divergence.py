"""Divergences: values worked out by hand, limits, bounds, and trl as the oracle in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gkd_rl.choices import DivergenceName, DivergenceScale
from gkd_rl.divergence import TokenDivergence, cross_entropy, forward_kl, jsd, reverse_kl

P = torch.tensor([[0.6, 0.35, 0.05]], dtype=torch.float64).log()
Q = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
IDS = torch.zeros(1, dtype=torch.long)
BETAS = (1e-4, 0.1, 0.3, 0.5, 0.9, 1 - 1e-4)


def random_logits(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def binary_entropy(beta: float) -> float:
    return -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (forward_kl(P, Q), 0.5980),
        (reverse_kl(P, Q), 0.8853),
        (jsd(P, Q, 1e-4) / 1e-4, 0.5979),
        (jsd(P, Q, 1 - 1e-4) / 1e-4, 0.8851),
        (jsd(P, Q, 0.1), 0.05391),
        (jsd(P, Q, 0.5), 0.16013),
        (jsd(P, Q, 0.9), 0.07116),
        (cross_entropy(Q, IDS), -math.log(0.2)),
    ],
)
def test_values(value: Tensor, expected: float) -> None:
    assert value.shape == (1,)
    digits = 5 if expected < 0.5 else 4
    assert round(value.item(), digits) == round(expected, digits)


def test_cross_entropy_reads_each_row_at_its_own_id() -> None:
    logp = random_logits(4, 5).log_softmax(-1)
    ids = torch.tensor([2, 0, 4, 1])
    assert cross_entropy(logp, ids).tolist() == [-logp[i, j].item() for i, j in enumerate(ids.tolist())]


@pytest.mark.parametrize("beta", BETAS)
def test_zero_for_identical(beta: float) -> None:
    logp = random_logits(5, 11).log_softmax(-1)
    for value in (forward_kl(logp, logp), reverse_kl(logp, logp), jsd(logp, logp, beta)):
        torch.testing.assert_close(value, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_lies_between_zero_and_the_binary_entropy_of_beta(beta: float) -> None:
    for spread in (0.1, 2.0, 30.0):
        teacher, student = (random_logits(200, 7, seed=seed, spread=spread).log_softmax(-1) for seed in (1, 2))
        values = jsd(teacher, student, beta)
        assert (values >= -1e-12).all()
        assert (values <= binary_entropy(beta) + 1e-12).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gap", [2000.0, math.inf])
def test_disjoint_support_reaches_the_bound_with_a_finite_gradient(beta: float, gap: float) -> None:
    """Two words each way and one that both rule out, by underflow and by a log-probability of -inf."""
    teacher = torch.tensor([[0.0, 0.5, -gap, -gap, -gap]], dtype=torch.float64).log_softmax(-1)
    logits = torch.tensor([[-gap, -gap, 0.2, 0.0, -gap]], dtype=torch.float64, requires_grad=True)
    value = jsd(teacher, logits.log_softmax(-1), beta)
    value.sum().backward()
    assert value.item() == pytest.approx(binary_entropy(beta), rel=1e-9)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_word_that_both_rule_out_adds_nothing_to_a_kl_and_its_gradient(
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> None:
    logits = random_logits(2, 3, 4, seed=4)
    dead = torch.tensor([False, False, True, False])
    with_dead, without = ([side.clone().requires_grad_() for side in logits] for _ in range(2))
    value = divergence(*(side.masked_fill(dead, -math.inf).log_softmax(-1) for side in with_dead))
    expected = divergence(*(side[:, ~dead].log_softmax(-1) for side in without))
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(with_dead[1].grad, without[1].grad)


def test_a_teacher_word_that_the_student_rules_out_costs_infinity_only_forward() -> None:
    teacher, student = P, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert forward_kl(teacher, student).item() == math.inf
    assert reverse_kl(teacher, student).isfinite().all()


def test_unit_scale_is_continuous_toward_both_kls() -> None:
    teacher, student = random_logits(6, 9, seed=1), random_logits(6, 9, seed=2)
    ids = torch.zeros(6, dtype=torch.long)

    def value_and_gradient(divergence: TokenDivergence) -> tuple[Tensor, Tensor]:
        logits = student.clone().requires_grad_()
        value = divergence(teacher, logits, ids)
        return value.detach(), torch.autograd.grad(value.sum(), logits)[0]

    for name, beta in ((DivergenceName.forward_kl, 1e-6), (DivergenceName.reverse_kl, 1 - 1e-6)):
        near = value_and_gradient(TokenDivergence(DivergenceName.jsd, beta, scale=DivergenceScale.unit))
        end = value_and_gradient(TokenDivergence(name))
        for one, other in zip(near, end, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    raw, unit = (
        value_and_gradient(TokenDivergence(DivergenceName.jsd, 0.1, scale=scale))[0] for scale in DivergenceScale
    )
    torch.testing.assert_close(unit, raw / 0.09)
    for name in (DivergenceName.forward_kl, DivergenceName.reverse_kl, DivergenceName.cross_entropy):
        values = [TokenDivergence(name, scale=scale)(teacher, student, ids) for scale in DivergenceScale]
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_parity_with_trl(beta: float, temperature: float) -> None:
    """Trl's beta is the paper's: the teacher's weight in M and of its KL; its ends 0 and 1 stand for the KLs."""
    from trl.experimental.gkd import GKDTrainer

    names = {0.0: DivergenceName.forward_kl, 1.0: DivergenceName.reverse_kl}
    ours = TokenDivergence(
        names.get(beta, DivergenceName.jsd), beta if 0 < beta < 1 else None, temperature, DivergenceScale.raw
    )
    teacher = random_logits(2, 3, 13, seed=1)
    student, trl_student = (random_logits(2, 3, 13, seed=2).requires_grad_() for _ in range(2))
    value = ours(teacher.flatten(0, 1), student.flatten(0, 1), torch.zeros(6, dtype=torch.long)).sum()
    expected = GKDTrainer.generalized_jsd_loss(
        trl_student, teacher, beta=beta, temperature=temperature, reduction="sum"
    )
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(student.grad, trl_student.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(DivergenceName))
def test_temperature_divides_both_models_logits(name: DivergenceName) -> None:
    teacher, student = random_logits(3, 5, seed=1), random_logits(3, 5, seed=2)
    ids = torch.tensor([4, 0, 2])
    parameter = 0.3 if name.parameter else None
    warm = TokenDivergence(name, parameter, temperature=2.5)(teacher, student, ids)
    torch.testing.assert_close(warm, TokenDivergence(name, parameter)(teacher / 2.5, student / 2.5, ids))


def test_refusals() -> None:
    for beta in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="beta="):
            jsd(P, Q, beta)
    with pytest.raises(ValueError, match="beta="):
        TokenDivergence(DivergenceName.jsd)(P, Q, IDS)
    with pytest.raises(ValueError, match="same shape"):
        forward_kl(P, Q[:, :2])
    with pytest.raises(ValueError, match="needs the teacher"):
        TokenDivergence(DivergenceName.forward_kl)(None, Q, IDS)
    assert not TokenDivergence(DivergenceName.cross_entropy).needs_teacher
    assert TokenDivergence(DivergenceName.cross_entropy)(None, Q, IDS).item() == pytest.approx(-math.log(0.2))
