"""Divergences: values computed by hand, limits, bounds, and parity with trl in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import yaml
from torch import Tensor

from gkd_rl.config.choices import DivergenceName, DivergenceScale
from gkd_rl.losses.divergences import (
    TokenDivergence,
    cross_entropy,
    forward_kl,
    jsd,
    reverse_kl,
    reverse_skew_kl,
    skew_kl,
    tvd,
)
from gkd_rl.run import find_config_dir

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


def test_cross_entropy_uses_the_id_of_each_row() -> None:
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
    """Two tokens only in P, two only in Q, one in neither; zero by underflow, and by a log-probability of -inf."""
    teacher = torch.tensor([[0.0, 0.5, -gap, -gap, -gap]], dtype=torch.float64).log_softmax(-1)
    logits = torch.tensor([[-gap, -gap, 0.2, 0.0, -gap]], dtype=torch.float64, requires_grad=True)
    value = jsd(teacher, logits.log_softmax(-1), beta)
    value.sum().backward()
    assert value.item() == pytest.approx(binary_entropy(beta), rel=1e-9)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_token_of_probability_zero_in_both_adds_nothing_to_a_kl(
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> None:
    logits = random_logits(2, 3, 4, seed=4)
    impossible = torch.tensor([False, False, True, False])
    with_impossible, without = ([side.clone().requires_grad_() for side in logits] for _ in range(2))
    value = divergence(*(side.masked_fill(impossible, -math.inf).log_softmax(-1) for side in with_impossible))
    expected = divergence(*(side[:, ~impossible].log_softmax(-1) for side in without))
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(with_impossible[1].grad, without[1].grad)


def test_a_token_of_probability_zero_in_the_student_makes_only_the_forward_kl_infinite() -> None:
    teacher, student = P, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert forward_kl(teacher, student).item() == math.inf
    assert reverse_kl(teacher, student).isfinite().all()


def test_scale_divides_the_jsd_and_leaves_the_kls() -> None:
    teacher, student = random_logits(6, 9, seed=1), random_logits(6, 9, seed=2)
    ids = torch.zeros(6, dtype=torch.long)

    def raw_and_unit(name: DivergenceName, parameter: float | None = None) -> list[Tensor]:
        return [TokenDivergence(name, parameter, scale=scale)(teacher, student, ids) for scale in DivergenceScale]

    raw, unit = raw_and_unit(DivergenceName.jsd, 0.1)
    torch.testing.assert_close(unit, raw / 0.09)
    for name in (DivergenceName.skew_kl, DivergenceName.reverse_skew_kl):
        raw, unit = raw_and_unit(name, 0.1)
        torch.testing.assert_close(unit, raw / 0.81)
    for name in (
        DivergenceName.forward_kl,
        DivergenceName.reverse_kl,
        DivergenceName.tvd,
        DivergenceName.cross_entropy,
    ):
        torch.testing.assert_close(*raw_and_unit(name))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_parity_with_trl(beta: float, temperature: float) -> None:
    """Trl's beta is the paper's: the teacher's weight in M and of its KL; its ends 0 and 1 are the KLs."""
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


@pytest.mark.parametrize("name", [name for name in DivergenceName if name is not DivergenceName.cross_entropy])
def test_a_sharper_teacher_is_one_with_larger_logits(name: DivergenceName) -> None:
    teacher, student = random_logits(3, 5, seed=1), random_logits(3, 5, seed=2)
    ids, parameter = torch.tensor([4, 0, 2]), 0.3 if name.parameter else None
    sharp = TokenDivergence(name, parameter, temperature=2.0, teacher_temperature=0.1)(teacher, student, ids)
    torch.testing.assert_close(sharp, TokenDivergence(name, parameter)(teacher / 0.2, student / 2.0, ids))


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


SMOOTH = [
    *((DivergenceName.jsd, beta) for beta in BETAS),
    *((name, skew) for name in (DivergenceName.skew_kl, DivergenceName.reverse_skew_kl) for skew in (0.1, 0.5, 0.9)),
    (DivergenceName.forward_kl, None),
    (DivergenceName.reverse_kl, None),
]
EVERY = [*SMOOTH, (DivergenceName.tvd, None)]


def value_and_gradient(divergence: TokenDivergence, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    logits = student.clone().requires_grad_()
    value = divergence(teacher, logits, torch.zeros(len(teacher), dtype=torch.long))
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def test_every_name_has_a_function_and_a_file() -> None:
    names = {name.value for name in DivergenceName}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (find_config_dir() / "divergence").glob("*.yaml")}
    assert {stem: content["name"] for stem, content in files.items()} == {name: name for name in names}
    assert {name for name, _ in EVERY} == set(DivergenceName) - {DivergenceName.cross_entropy}


ENDS = [
    (DivergenceName.jsd, DivergenceName.forward_kl, 0),
    (DivergenceName.jsd, DivergenceName.reverse_kl, 1),
    (DivergenceName.skew_kl, DivergenceName.forward_kl, 0),
    (DivergenceName.reverse_skew_kl, DivergenceName.reverse_kl, 0),
]


@pytest.mark.parametrize(
    ("dtype", "distance", "tolerance"), [(torch.float64, 1e-7, 1e-5), (torch.float32, 1e-6, 1e-3)], ids=str
)
@pytest.mark.parametrize(("name", "end", "side"), ENDS)
def test_limits_are_the_kls(
    name: DivergenceName, end: DivergenceName, side: int, dtype: torch.dtype, distance: float, tolerance: float
) -> None:
    """JSD(b)/b and JSD(b)/(1-b), the same in unit scale, and the skew KLs without skew; value and gradient."""
    teacher, student = (random_logits(50, 9, seed=seed, spread=1.0).to(dtype) for seed in (1, 2))
    limit = value_and_gradient(TokenDivergence(end), teacher, student)
    near = abs(side - distance)
    raw = value_and_gradient(TokenDivergence(name, near), teacher, student)
    unit = value_and_gradient(TokenDivergence(name, near, scale=DivergenceScale.unit), teacher, student)
    factor = distance if name is DivergenceName.jsd else 1.0
    for one, other, expected in zip(raw, unit, limit, strict=True):
        size = expected.abs().max()
        assert ((one / factor - expected).abs() / size).max() < tolerance
        assert ((other - expected).abs() / size).max() < tolerance


def test_unit_scale_has_no_jump_between_the_ends() -> None:
    """Toward either end the distance to the KL shrinks with the parameter."""
    teacher, student = random_logits(6, 9, seed=1), random_logits(6, 9, seed=2)

    def gap(name: DivergenceName, near: float, end: DivergenceName) -> float:
        one, other = TokenDivergence(name, near, scale=DivergenceScale.unit), TokenDivergence(end)
        pairs = zip(*(value_and_gradient(which, teacher, student) for which in (one, other)), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    for name, end, side in ENDS:
        gaps = [gap(name, abs(side - distance), end) for distance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 1e-2 * gaps[0]


@pytest.mark.parametrize(("name", "parameter"), EVERY)
@pytest.mark.parametrize("scale", list(DivergenceScale))
@pytest.mark.parametrize("top_k", [None, 3])
def test_equal_models_have_no_divergence(
    name: DivergenceName, parameter: float | None, scale: DivergenceScale, top_k: int | None
) -> None:
    logits = random_logits(5, 11)
    divergence = TokenDivergence(name, parameter, scale=scale, teacher_top_k=top_k)
    for part in value_and_gradient(divergence, logits, logits):
        torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-10)
    apart = divergence(logits, random_logits(5, 11, seed=1), torch.zeros(5, dtype=torch.long))
    assert (apart > 1e-3 * (parameter or 1) * (1 - (parameter or 0))).all()


@pytest.mark.parametrize(("name", "parameter"), SMOOTH)
def test_unit_scale_gives_one_curvature(name: DivergenceName, parameter: float | None) -> None:
    """D(P, P + d) -> χ²/2 = 1/2 Σ d²/P, for the KLs in either scale."""
    p = random_logits(4, 6, seed=3, spread=1.0).softmax(-1)
    step = random_logits(4, 6, seed=4, spread=1.0)
    step = 1e-4 * p * (step - (p * step).sum(-1, keepdim=True))  # sums to 0
    value = TokenDivergence(name, parameter, scale=DivergenceScale.unit)(
        p.log(), (p + step).log(), torch.zeros(4).long()
    )
    torch.testing.assert_close(value, 0.5 * (step**2 / p).sum(-1), rtol=2e-3, atol=1e-13)


def test_tvd_is_half_the_l1_distance() -> None:
    assert tvd(P, Q).item() == pytest.approx(0.5 * (0.4 + 0.05 + 0.45))
    teacher, student = random_logits(20, 7, seed=1), random_logits(20, 7, seed=2)
    expected = 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1)
    torch.testing.assert_close(tvd(teacher.log_softmax(-1), student.log_softmax(-1)), expected)
    assert ((expected >= 0) & (expected <= 1)).all()
    far = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert tvd(*far).item() == 1.0


def test_which_divergences_are_symmetric() -> None:
    teacher, student = (random_logits(20, 7, seed=seed).log_softmax(-1) for seed in (1, 2))
    torch.testing.assert_close(jsd(teacher, student, 0.5), jsd(student, teacher, 0.5))
    torch.testing.assert_close(tvd(teacher, student), tvd(student, teacher))
    for beta in (0.1, 0.3):
        torch.testing.assert_close(jsd(teacher, student, beta), jsd(student, teacher, 1 - beta))
        assert not torch.allclose(jsd(teacher, student, beta), jsd(student, teacher, beta))
    for forward, reverse in ((forward_kl, reverse_kl), (skew_kl, reverse_skew_kl)):
        torch.testing.assert_close(forward(teacher, student, 0.1), reverse(student, teacher, 0.1))


@pytest.mark.parametrize("skew", [0.1, 0.5, 0.9])
def test_skew_kls_against_loops_and_their_bound(skew: float) -> None:
    p, q = [0.6, 0.35, 0.05], [0.2, 0.3, 0.5]
    for function, own, other in ((skew_kl, p, q), (reverse_skew_kl, q, p)):
        expected = sum(a * math.log(a / (skew * a + (1 - skew) * b)) for a, b in zip(own, other, strict=True))
        assert function(P, Q, skew).item() == pytest.approx(expected, rel=1e-9)
        far, away = (random_logits(50, 5, seed=seed, spread=30.0).log_softmax(-1) for seed in (1, 2))
        assert (function(far, away, skew) <= -math.log(skew) + 1e-9).all()
        for wrong in (0.0, 1.0):
            with pytest.raises(ValueError, match="skew="):
                function(P, Q, wrong)


def bucketed(name: DivergenceName, parameter: float | None, p: list[float], q: list[float], k: int) -> float:
    """The divergence over the teacher's k most probable tokens and a bucket of all others, by loops."""
    top = sorted(range(len(p)), key=lambda token: -p[token])[:k]
    own = [p[token] for token in top] + [sum(p[token] for token in range(len(p)) if token not in top)]
    other = [q[token] for token in top] + [sum(q[token] for token in range(len(q)) if token not in top)]

    def kl(one: list[float], two: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(one, two, strict=True))

    def mixture(weight: float) -> list[float]:
        return [weight * a + (1 - weight) * b for a, b in zip(own, other, strict=True)]

    if name is DivergenceName.tvd:
        return 0.5 * sum(abs(a - b) for a, b in zip(own, other, strict=True))
    if parameter is None:
        return kl(own, other) if name is DivergenceName.forward_kl else kl(other, own)
    if name is DivergenceName.jsd:
        return parameter * kl(own, mixture(parameter)) + (1 - parameter) * kl(other, mixture(parameter))
    return kl(own, mixture(parameter)) if name is DivergenceName.skew_kl else kl(other, mixture(1 - parameter))


@pytest.mark.parametrize(("name", "parameter"), EVERY)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_teacher_top_k_compares_the_buckets(name: DivergenceName, parameter: float | None, k: int) -> None:
    teacher, student = random_logits(4, 8, seed=1), random_logits(4, 8, seed=2)
    value, gradient = value_and_gradient(TokenDivergence(name, parameter, teacher_top_k=k), teacher, student)
    rows = zip(teacher.softmax(-1).tolist(), student.softmax(-1).tolist(), strict=True)
    assert value.tolist() == pytest.approx([bucketed(name, parameter, p, q, k) for p, q in rows], rel=1e-6, abs=1e-12)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0


@pytest.mark.parametrize(("name", "parameter"), EVERY)
def test_teacher_top_k_is_a_lower_bound_that_reaches_the_full_divergence(
    name: DivergenceName, parameter: float | None
) -> None:
    teacher, student = random_logits(30, 8, seed=1), random_logits(30, 8, seed=2)
    full = value_and_gradient(TokenDivergence(name, parameter), teacher, student)
    last = torch.zeros(30, dtype=torch.float64)
    for k in range(1, 7):
        value, _ = value_and_gradient(TokenDivergence(name, parameter, teacher_top_k=k), teacher, student)
        assert (value >= last - 1e-12).all()  # it grows with k
        assert (value <= full[0] + 1e-12).all()
        last = value
    for k in (7, 8, 100):
        for one, other in zip(
            value_and_gradient(TokenDivergence(name, parameter, teacher_top_k=k), teacher, student), full, strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "parameter"), EVERY)
@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_stay_finite_where_float32_underflows(
    name: DivergenceName, parameter: float | None, top_k: int | None
) -> None:
    teacher, student = torch.tensor([[200.0, 0.0, -90.0, 5.0]]), torch.tensor([[-120.0, 90.0, 3.0, -1.0]])
    divergence = TokenDivergence(name, parameter, scale=DivergenceScale.unit, teacher_top_k=top_k)
    for one, other in ((teacher, student), (student, teacher)):
        value, gradient = value_and_gradient(divergence, one, other)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
