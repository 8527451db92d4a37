"""The fused head against the plain computation on all logits, and the largest tensor that it may hold in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import essential
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gkd_rl.config.choices import DivergenceName
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.types import FEW_ROWS, LARGE_MATRIX, OutputHead, Projection, TokenTerms, transposed_is_faster

B, T, D, D_TEACHER, V = 4, 6, 5, 7, 23
LENGTHS = (6, 3, 1, 4)
TEMPERATURES = (0.7, 1.0, 2.0)
DIVERGENCES = {
    "forward_kl": (DivergenceName.forward_kl, None),
    "reverse_kl": (DivergenceName.reverse_kl, None),
    "jsd_0.1": (DivergenceName.jsd, 0.1),
    "jsd_0.5": (DivergenceName.jsd, 0.5),
    "jsd_0.9": (DivergenceName.jsd, 0.9),
    "cross_entropy": (DivergenceName.cross_entropy, None),
}


@dataclass
class Case:
    """Random hidden states and heads of both models; the student's are leaves."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    teacher: Projection
    ids: Tensor
    mask: Tensor

    @property
    def student(self) -> Projection:
        return Projection(self.hidden, OutputHead(self.weight, self.bias, self.scale, self.softcap))

    def leaves(self) -> list[Tensor]:
        return [one for one in (self.hidden, self.weight, self.bias) if one is not None]


def make_case(
    *,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    teacher_vocabulary: int = V,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Case(
        hidden=normal(B, T, D).requires_grad_(),
        weight=normal(V, D).requires_grad_(),
        bias=normal(V).requires_grad_() if bias else None,
        scale=scale,
        softcap=softcap,
        teacher=Projection(normal(B, T, D_TEACHER), OutputHead(normal(teacher_vocabulary, D_TEACHER))),
        ids=torch.randint(0, V, (B, T), generator=generator),
        mask=torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1),
    )


def naive(case: Case, name: DivergenceName, beta: float | None, temperature: float, sampling: float) -> TokenTerms:
    """All logits at once, in probabilities instead of log-probabilities."""
    bias = 0 if case.bias is None else case.bias
    logits = case.scale * case.hidden @ case.weight.T + bias
    if case.softcap is not None:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    head = case.teacher.head
    teacher_logits = (case.teacher.hidden_BTD @ head.weight_VD.T)[..., :V] * head.scale
    sampled = torch.softmax(logits / sampling, dim=-1)
    logp = sampled.gather(-1, case.ids.unsqueeze(-1)).squeeze(-1).log()
    entropy = -(sampled * sampled.log()).sum(-1)
    p, q = torch.softmax(teacher_logits / temperature, -1), torch.softmax(logits / temperature, -1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    if name is DivergenceName.forward_kl:
        divergence = kl(p, q)
    elif name is DivergenceName.reverse_kl:
        divergence = kl(q, p)
    elif name is DivergenceName.cross_entropy:
        divergence = -q.gather(-1, case.ids.unsqueeze(-1)).squeeze(-1).log()
    else:
        assert beta is not None
        m = beta * p + (1 - beta) * q
        divergence = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return TokenTerms(*(torch.where(case.mask, values, 0.0) for values in (logp, divergence, entropy)))


def gradients(terms: TokenTerms, case: Case) -> list[Tensor]:
    """Of a random weighting of every log-probability and divergence, the masked ones included."""
    generator = torch.Generator().manual_seed(9)
    loss = (terms.logp_BT * torch.randn(B, T, generator=generator)).sum()
    if terms.divergence_BT is not None:
        loss = loss + (terms.divergence_BT * torch.randn(B, T, generator=generator)).sum()
    return list(torch.autograd.grad(loss, case.leaves()))


def assert_same(case: Case, terms: TokenTerms, expected: TokenTerms) -> None:
    assert terms.divergence_BT is not None
    assert expected.divergence_BT is not None
    pairs = (
        (terms.logp_BT, expected.logp_BT),
        (terms.divergence_BT, expected.divergence_BT),
        (terms.entropy_BT, expected.entropy_BT.detach()),
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    for one, other in zip(gradients(terms, case), gradients(expected, case), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("chunk", essential([1, 3, 7, 10_000], 3))
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equals_the_plain_computation(kind: str, chunk: int) -> None:
    name, beta = DIVERGENCES[kind]
    case = make_case(scale=D**-0.5)
    teacher = None if name is DivergenceName.cross_entropy else case.teacher
    for temperature in TEMPERATURES:
        for sampling in TEMPERATURES:
            head = FusedHead(TokenDivergence(name, beta, temperature), sampling, chunk)
            terms = head(case.student, teacher, case.ids, case.mask)
            assert_same(case, terms, naive(case, name, beta, temperature, sampling))


@pytest.mark.parametrize("chunk", [3, 10_000])
@pytest.mark.parametrize(
    "head", [{"bias": True}, {"scale": 0.25}, {"bias": True, "scale": 0.25}, {"softcap": 1.5}], ids=str
)
def test_scaled_head_bias_and_cap(head: dict[str, Any], chunk: int) -> None:
    """T5 v1.0, Cohere and Granite scale, BART has a bias, Gemma a cap."""
    case = make_case(**head)
    fused = FusedHead(TokenDivergence(DivergenceName.jsd, 0.9), 1.0, chunk)
    terms = fused(case.student, case.teacher, case.ids, case.mask)
    assert_same(case, terms, naive(case, DivergenceName.jsd, 0.9, 1.0, 1.0))


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
def test_the_transposed_product_gives_the_same_logits(rows: int) -> None:
    """With all gradients, and with a padded embedding."""
    draw = torch.Generator().manual_seed(rows)
    width, vocabulary = 2**12, LARGE_MATRIX // 2**12
    leaves = [
        torch.randn(*shape, generator=draw) for shape in ((rows, width), (vocabulary + 5, width), (vocabulary + 5,))
    ]
    hidden, weight, bias = (leaf.div_(width**0.25).requires_grad_() for leaf in leaves)
    assert transposed_is_faster(hidden, weight[:vocabulary]) == (rows <= FEW_ROWS)
    assert not transposed_is_faster(hidden, weight[: vocabulary - 1])
    assert not transposed_is_faster(hidden.bfloat16(), weight.bfloat16())
    found = OutputHead(weight, bias, scale=0.5, softcap=3.0).logits(hidden, vocabulary)
    expected = 3 * torch.tanh((0.5 * hidden @ weight[:vocabulary].T + bias[:vocabulary]) / 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous() and found.std() > 0.1
    upstream = torch.randn(found.shape, generator=draw)
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight, bias), upstream),
        torch.autograd.grad(expected, (hidden, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [3, 10_000])
def test_a_teacher_with_a_padded_embedding_is_cut_to_the_shared_vocabulary(chunk: int) -> None:
    case = make_case(teacher_vocabulary=V + 9)
    head = FusedHead(TokenDivergence(DivergenceName.forward_kl), 1.0, chunk)
    terms = head(case.student, case.teacher, case.ids, case.mask)
    assert_same(case, terms, naive(case, DivergenceName.forward_kl, None, 1.0, 1.0))


def test_a_student_with_a_padded_embedding_is_cut_to_the_shared_vocabulary() -> None:
    case = make_case(bias=True)
    assert case.bias is not None
    padded_weight, padded_bias = (torch.cat([one.detach(), one.detach()[:4] + 1]) for one in (case.weight, case.bias))
    padded = Projection(case.hidden, OutputHead(padded_weight, padded_bias))
    head = FusedHead(TokenDivergence(DivergenceName.reverse_kl))
    terms = head(padded, case.teacher, case.ids, case.mask)
    expected = head(case.student, case.teacher, case.ids, case.mask)
    torch.testing.assert_close(terms.logp_BT, expected.logp_BT)
    torch.testing.assert_close(terms.divergence_BT, expected.divergence_BT)


@pytest.mark.parametrize("chunk", [3, 10_000])
def test_masked_positions_are_exactly_zero_and_get_no_gradient(chunk: int) -> None:
    case = make_case()
    with torch.no_grad():
        case.hidden[~case.mask] = torch.nan  # masked states must not be used
    teacher = replace(case.teacher, hidden_BTD=case.teacher.hidden_BTD.masked_fill(~case.mask.unsqueeze(-1), torch.nan))
    head = FusedHead(TokenDivergence(DivergenceName.jsd, 0.5), 1.0, chunk)
    terms = head(case.student, teacher, case.ids, case.mask)
    assert terms.divergence_BT is not None
    for values in (terms.logp_BT, terms.divergence_BT, terms.entropy_BT):
        assert (values[~case.mask] == 0).all()
        assert (values[case.mask] != 0).all()
    hidden_gradient, weight_gradient = gradients(terms, case)
    assert (hidden_gradient[~case.mask] == 0).all()
    assert (hidden_gradient[case.mask] != 0).all()
    assert weight_gradient.isfinite().all()


@pytest.mark.parametrize("divergence", [None, TokenDivergence(DivergenceName.jsd, 0.5)])
def test_a_fully_masked_batch_has_a_graph_and_zero_gradients(divergence: TokenDivergence | None) -> None:
    case = make_case(bias=True)
    terms = FusedHead(divergence)(case.student, case.teacher, case.ids, torch.zeros_like(case.mask))
    assert not terms.logp_BT.any()
    assert not terms.entropy_BT.any()
    assert terms.divergence_BT is None or not terms.divergence_BT.any()
    for gradient in gradients(terms, case):
        assert gradient.isfinite().all()
        assert not gradient.any()


def test_entropy_has_no_gradient_and_the_divergence_may_be_none() -> None:
    case = make_case()
    for chunk in (3, 10_000):
        terms = FusedHead(None, 1.0, chunk)(case.student, None, case.ids, case.mask)
        assert terms.divergence_BT is None
        assert not terms.entropy_BT.requires_grad
        assert terms.logp_BT.requires_grad
    flat = replace(case, hidden=torch.zeros_like(case.hidden))
    uniform = FusedHead(None)(flat.student, None, case.ids, case.mask)
    torch.testing.assert_close(uniform.entropy_BT[case.mask], torch.tensor(float(V)).log().expand(sum(LENGTHS)))


def test_the_teacher_gets_no_gradient() -> None:
    case = make_case()
    hidden = case.teacher.hidden_BTD.clone().requires_grad_()
    weight = case.teacher.head.weight_VD.clone().requires_grad_()
    head = FusedHead(TokenDivergence(DivergenceName.reverse_kl), 1.0, 3)
    terms = head(case.student, Projection(hidden, OutputHead(weight)), case.ids, case.mask)
    assert terms.divergence_BT is not None
    terms.divergence_BT.sum().backward()
    assert weight.grad is None
    assert hidden.grad is None


def test_hidden_states_of_another_shape_are_refused() -> None:
    case = make_case()
    head = FusedHead(TokenDivergence(DivergenceName.reverse_kl))
    with pytest.raises(ValueError, match="student hidden states"):
        head(Projection(case.hidden[:, 1:], case.student.head), case.teacher, case.ids, case.mask)
    with pytest.raises(ValueError, match="teacher hidden states"):
        head(case.student, Projection(case.teacher.hidden_BTD[1:], case.teacher.head), case.ids, case.mask)


class Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("name", [DivergenceName.jsd, DivergenceName.reverse_kl])
def test_no_tensor_is_larger_than_one_chunk_of_logits(name: DivergenceName) -> None:
    rows, columns, width, vocabulary, chunk = 6, 10, 4, 1009, 5
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(rows, columns, width, generator=generator) for _ in range(2))
    weight = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    hidden.requires_grad_()
    ids = torch.randint(0, vocabulary, (rows, columns), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    head = FusedHead(TokenDivergence(name, 0.9 if name is DivergenceName.jsd else None), 1.0, chunk)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    largest = Largest()
    with largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = head(
                Projection(hidden, OutputHead(weight)), Projection(teacher, OutputHead(weight.detach())), ids, mask
            )
            assert terms.divergence_BT is not None
            loss = terms.logp_BT.sum() + terms.divergence_BT.sum()
        forward_largest = largest.numel
        loss.backward()
    assert forward_largest == largest.numel == chunk * vocabulary  # of rows * columns * vocabulary
    assert all(tensor.shape[-1] != vocabulary for tensor in kept), "logits are saved for the backward pass"
    assert hidden.grad is not None
    assert hidden.grad.any()
