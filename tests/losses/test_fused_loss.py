"""The fused loss with its gradient, against autograd through the terms of the fused head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import essential
from test_fused_head import LENGTHS, B, D, T, V, make_case
from torch import Tensor

from gkd_rl.config.choices import DivergenceName, DivergenceReduction, DivergenceScale, SurrogateReduction
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import CHUNK_TENSORS, FusedHead
from gkd_rl.losses.fused_loss import FusedLoss
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.planning.memory_plan import LiveMemory
from gkd_rl.types import Credits, OutputHead, Projection, TopLogProbs

TOTALS = StepTotals(sequences=B + 3, tokens=sum(LENGTHS) + 11)
DIVERGENCES = {
    "none": None,
    "forward_kl": TokenDivergence(DivergenceName.forward_kl),
    "reverse_kl": TokenDivergence(DivergenceName.reverse_kl, teacher_temperature=0.5),
    "jsd_0.1": TokenDivergence(DivergenceName.jsd, 0.1, scale=DivergenceScale.unit),
    "jsd_0.9": TokenDivergence(DivergenceName.jsd, 0.9, 1.7),
    "tvd": TokenDivergence(DivergenceName.tvd),
    "skew_kl": TokenDivergence(DivergenceName.skew_kl, 0.3, 0.8, DivergenceScale.unit),
    "reverse_skew_kl": TokenDivergence(DivergenceName.reverse_skew_kl, 0.2),
    "cross_entropy": TokenDivergence(DivergenceName.cross_entropy, None, 1.3),
    "top_k": TokenDivergence(DivergenceName.jsd, 0.5, teacher_top_k=4),
}
OBJECTIVES = {
    "reinforce": Objective(DivergenceReduction.sequence_mean, SurrogateReduction.sequence_sum),
    "clipped": Objective(DivergenceReduction.token_mean, SurrogateReduction.token_mean, clip=(0.1, 0.2)),
    "kl_in_loss": Objective(DivergenceReduction.sequence_sum, SurrogateReduction.sequence_mean, kl_coefficient=0.3),
}


def random_credits(*, rewarded: bool, credited: bool) -> Credits:
    generator = torch.Generator().manual_seed(3)
    one, other, old, initial = (torch.randn(B, T, generator=generator) for _ in range(4))
    return Credits(one if rewarded else None, other if credited else None, 0.1 * old - 3, initial - 3)


def both_ways(
    head: FusedHead, case: Any, teacher: Any, objective: Objective, credits: Credits, alpha: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, terms and gradients by autograd through `FusedHead`, and by `FusedLoss`."""
    terms = head(case.student, teacher, case.ids, case.mask)
    loss = objective(terms, case.mask, credits, TOTALS).loss(alpha)
    slow = [loss, terms.logp_BT, terms.entropy_BT, *([] if terms.divergence_BT is None else [terms.divergence_BT])]
    slow += torch.autograd.grad(loss, case.leaves())
    token_loss = objective.token_loss(case.mask, credits, TOTALS)
    loss, terms = FusedLoss(head, lambda *terms: token_loss(*terms).loss(alpha))(
        case.student, teacher, case.ids, case.mask
    )
    fast = [loss, terms.logp_BT, terms.entropy_BT, *([] if terms.divergence_BT is None else [terms.divergence_BT])]
    fast += torch.autograd.grad(3 * loss, case.leaves())
    return slow, [*fast[: -len(case.leaves())], *(one / 3 for one in fast[-len(case.leaves()) :])]


def assert_same(slow: list[Tensor], fast: list[Tensor]) -> None:
    assert len(slow) == len(fast)
    for one, other in zip(slow, fast, strict=True):
        torch.testing.assert_close(
            other, one.detach(), rtol=2e-5, atol=2e-6 * max(1.0, float(one.detach().abs().max()))
        )


@pytest.mark.parametrize("chunk", essential([1, 5, 10_000], 5))
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_autograd(objective: str, kind: str, chunk: int) -> None:
    divergence, case = DIVERGENCES[kind], make_case(scale=D**-0.5)
    for sampling in (1.0, 0.7):
        for rewarded, credited in ((True, False), (False, False), (True, True)):
            if divergence is None and (not rewarded or credited):
                continue
            head, credits = FusedHead(divergence, sampling, chunk), random_credits(rewarded=rewarded, credited=credited)
            assert_same(*both_ways(head, case, case.teacher, OBJECTIVES[objective], credits, 0.3))


@pytest.mark.parametrize("chunk", [3, 10_000])
@pytest.mark.parametrize("shape", [{"bias": True}, {"scale": 0.25}, {"bias": True, "softcap": 1.5}], ids=str)
def test_scaled_head_bias_and_cap(shape: dict[str, Any], chunk: int) -> None:
    case = make_case(**shape, teacher_vocabulary=V + 9)
    head = FusedHead(DIVERGENCES["jsd_0.1"], 0.9, chunk, vocabulary=V - 2)
    case.ids.clamp_(max=V - 3)
    credits = random_credits(rewarded=True, credited=False)
    assert_same(*both_ways(head, case, case.teacher, OBJECTIVES["reinforce"], credits, 0.6))


@pytest.mark.parametrize("k", [5, V])
def test_a_teacher_with_its_most_probable_tokens_only(k: int) -> None:
    case = make_case(bias=True)
    top = torch.log_softmax(case.teacher.head.logits(case.teacher.hidden_BTD, V), dim=-1).topk(k)
    teacher = TopLogProbs(top.indices, top.values)
    head = FusedHead(DIVERGENCES["forward_kl"], 1.0, 4)
    credits = random_credits(rewarded=True, credited=False)
    assert_same(*both_ways(head, case, teacher, OBJECTIVES["clipped"], credits, 0.5))


@pytest.mark.parametrize("kind", [name for name in DIVERGENCES if name not in ("none", "cross_entropy")])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 8.0, 200.0])
def test_equal_models_and_disjoint_models(kind: str, spread: float) -> None:
    """Values and gradients stay those of autograd where P is close to Q, and finite where one of them is 0."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40, V, generator=generator)
    teacher = logits + spread * torch.randn(40, V, generator=generator)
    ids, divergence = torch.zeros(40, dtype=torch.long), DIVERGENCES[kind]
    assert divergence is not None
    leaf = logits.double().requires_grad_()
    value = divergence(teacher.double(), leaf, ids)
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    logq = torch.log_softmax(logits / divergence.temperature, dim=-1)
    found, gradient = divergence.with_gradient(teacher.clone(), logits, logq, logq.exp(), ids)
    unit = 0.09 if kind == "jsd_0.1" else 1.0
    assert found.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(found.double(), value.detach(), rtol=2e-5, atol=3e-7 / unit)
    if (kind, spread) != ("tvd", 1e-3):  # its gradient is the sign of differences below float32 rounding
        large = max(1.0, float(value.detach().abs().max()))  # rounding of probabilities, times log-ratios
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=2e-6 * large / unit)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_chunk_holds_no_more_tensors_than_its_budget_assumes(kind: str) -> None:
    divergence, vocabulary, tokens = DIVERGENCES[kind], 5000, 64
    hidden, teacher = (torch.randn(1, tokens, 4) for _ in range(2))
    head = OutputHead(torch.randn(vocabulary, 4), softcap=30.0)
    ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens, dtype=torch.bool)
    needs_teacher = divergence is not None and divergence.needs_teacher

    def total(logp_N: Tensor, divergence_N: Tensor | None, _: slice) -> Tensor:
        return logp_N.sum() if divergence_N is None else (logp_N + divergence_N).sum()

    def peak(chunk: int) -> int:
        with LiveMemory() as live:
            fused = FusedLoss(FusedHead(divergence, 0.9, chunk), total)
            fused(
                Projection(hidden.requires_grad_(), head),
                Projection(teacher, head) if needs_teacher else None,
                ids,
                mask,
            )
        return live.peak

    tensors = (peak(64) - peak(16)) / (48 * vocabulary * 4)
    assert 3 < tensors <= CHUNK_TENSORS + 0.1


def test_bfloat16_weights_get_gradients_of_their_type() -> None:
    case = make_case(bias=True)
    teacher = Projection(case.teacher.hidden_BTD.bfloat16(), case.teacher.head)
    teacher = Projection(teacher.hidden_BTD, type(case.teacher.head)(case.teacher.head.weight_VD.bfloat16()))
    case.hidden, case.weight = (one.detach().bfloat16().requires_grad_() for one in (case.hidden, case.weight))
    assert case.bias is not None
    case.bias = case.bias.detach().bfloat16().requires_grad_()
    head, credits = FusedHead(DIVERGENCES["jsd_0.9"], 1.0, 4), random_credits(rewarded=True, credited=False)
    slow, fast = both_ways(head, case, teacher, OBJECTIVES["reinforce"], credits, 0.5)
    for one, other in zip(slow, fast, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one.detach(), rtol=0.03, atol=0.02 * float(one.detach().abs().max()))


def test_frozen_parameters_and_masked_positions_get_no_gradient() -> None:
    case = make_case(bias=True)
    case.weight = case.weight.detach()
    with torch.no_grad():
        case.hidden[~case.mask] = torch.nan
    credits = random_credits(rewarded=True, credited=False)
    token_loss = OBJECTIVES["reinforce"].token_loss(case.mask, credits, TOTALS)
    fused = FusedLoss(FusedHead(DIVERGENCES["reverse_kl"], 1.0, 4), lambda *terms: token_loss(*terms).loss(0.5))
    loss, terms = fused(case.student, case.teacher, case.ids, case.mask)
    loss.backward()
    assert case.weight.grad is None and case.bias is not None and case.bias.grad is not None
    assert case.hidden.grad is not None and (case.hidden.grad[~case.mask] == 0).all()
    assert (case.hidden.grad[case.mask] != 0).all()
    assert (terms.logp_BT[~case.mask] == 0).all() and not terms.logp_BT.requires_grad
    with pytest.raises(RuntimeError):
        loss.backward()


def test_a_fully_masked_batch_has_a_graph_and_zero_gradients() -> None:
    case = make_case(bias=True)
    nothing = torch.zeros_like(case.mask)
    credits = random_credits(rewarded=True, credited=False)
    token_loss = OBJECTIVES["kl_in_loss"].token_loss(nothing, credits, TOTALS)
    fused = FusedLoss(FusedHead(DIVERGENCES["tvd"]), lambda *terms: token_loss(*terms).loss(0.5))
    loss, terms = fused(case.student, case.teacher, case.ids, nothing)
    assert float(loss.detach()) == 0 and not terms.logp_BT.any()
    for gradient in torch.autograd.grad(loss, case.leaves()):
        assert not gradient.any()
