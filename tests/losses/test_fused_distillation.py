"""The fused loss for other training loops equals the divergence of full logits, in value and in every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from torch import Tensor

from gkd_rl.losses import DivergenceName, DivergenceReduction, StepTotals, TokenDivergence, fused_distillation_loss
from gkd_rl.types import OutputHead, Projection

B, T, V = 3, 5, 17
DIVERGENCES = {
    "forward KL": TokenDivergence(DivergenceName.forward_kl),
    "reverse KL": TokenDivergence(DivergenceName.reverse_kl, temperature=2.0),
    "JSD": TokenDivergence(DivergenceName.jsd, 0.9),
    "the teacher's top 3": TokenDivergence(DivergenceName.reverse_kl, teacher_top_k=3),
}
HEADS = {
    "plain": OutputHead(torch.empty(0)),
    "with a bias": OutputHead(torch.empty(0), bias_V=torch.empty(0)),
    "T5's scale": OutputHead(torch.empty(0), scale=8**-0.5),
    "capped": OutputHead(torch.empty(0), softcap=3.0),
}


def projection(width: int, head: OutputHead, seed: int) -> Projection:
    """Random states and weights of the head's kind, which require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    bias = None if head.bias_V is None else leaf(V)
    return Projection(leaf(B, T, width), replace(head, weight_VD=leaf(V, width), bias_V=bias))


def mask() -> Tensor:
    return torch.arange(T) < torch.tensor([[5], [2], [3]])


def by_full_logits(
    student: Projection,
    teacher: Projection,
    divergence: TokenDivergence,
    reduction: DivergenceReduction,
) -> Tensor:
    """The same by (B, T, V) logits and autograd."""
    logits = [one.head.logits(one.hidden_BTD.flatten(0, 1), V) for one in (teacher, student)]
    values_BT = divergence(logits[0].detach(), logits[1], torch.zeros(B * T, dtype=torch.long)).view(B, T) * mask()
    if reduction is DivergenceReduction.token_mean:
        return values_BT.sum() / mask().sum()
    by_sequence_B = values_BT.sum(dim=1)
    if reduction is DivergenceReduction.sequence_mean:
        by_sequence_B = by_sequence_B / mask().sum(dim=1)
    return by_sequence_B.mean()


def leaves(one: Projection) -> list[Tensor]:
    return [leaf for leaf in (one.hidden_BTD, one.head.weight_VD, one.head.bias_V) if leaf is not None]


@pytest.mark.parametrize("reduction", DivergenceReduction)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_value_and_gradients_are_those_of_full_logits(
    divergence: str, head: str, reduction: DivergenceReduction
) -> None:
    student, teacher = projection(8, HEADS[head], seed=0), projection(12, HEADS[head], seed=1)
    wanted = by_full_logits(student, teacher, DIVERGENCES[divergence], reduction)
    gradients = torch.autograd.grad(3 * wanted, leaves(student))
    for chunk_tokens in (None, 4):
        loss = fused_distillation_loss(
            student, teacher, mask(), DIVERGENCES[divergence], reduction, chunk_tokens=chunk_tokens
        )
        assert_close(loss, wanted)
        (3 * loss).backward()
        for leaf, gradient in zip(leaves(student), gradients, strict=True):
            assert leaf.grad is not None
            assert_close(leaf.grad, gradient)
            leaf.grad = None
        assert all(leaf.grad is None for leaf in leaves(teacher))


@pytest.mark.parametrize("reduction", DivergenceReduction)
def test_losses_of_batches_add_up_to_that_of_the_step(reduction: DivergenceReduction) -> None:
    student, teacher = projection(8, HEADS["plain"], seed=0), projection(12, HEADS["plain"], seed=1)
    jsd, totals = DIVERGENCES["JSD"], StepTotals(B, int(mask().sum()))
    parts = [
        fused_distillation_loss(
            replace(student, hidden_BTD=student.hidden_BTD[rows]),
            replace(teacher, hidden_BTD=teacher.hidden_BTD[rows]),
            mask()[rows],
            jsd,
            reduction,
            totals,
        )
        for rows in (slice(0, 1), slice(1, B))
    ]
    assert_close(torch.stack(parts).sum(), fused_distillation_loss(student, teacher, mask(), jsd, reduction))


def test_what_has_no_teacher_and_what_does_not_fit_is_refused() -> None:
    student, teacher = projection(8, HEADS["plain"], seed=0), projection(12, HEADS["plain"], seed=1)
    with pytest.raises(ValueError, match="cross_entropy compares the student with given tokens"):
        fused_distillation_loss(student, teacher, mask(), TokenDivergence(DivergenceName.cross_entropy))
    with pytest.raises(ValueError, match="do not fit"):
        fused_distillation_loss(
            student, replace(teacher, hidden_BTD=teacher.hidden_BTD[:, 1:]), mask(), DIVERGENCES["JSD"]
        )
