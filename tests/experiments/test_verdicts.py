"""What counts as shown: the rules, on series that are made for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.study.verdicts import About, Claim, Series, Verdict, combined, mean_of, overall, spread_of

SHOWN, NOT_SHOWN, UNDECIDED = Verdict.shown, Verdict.not_shown, Verdict.undecided
UP, DOWN, OPEN = [1.0, 1.2, 0.8, 1.1, 0.9], [-1.0, -1.2, -0.8, -1.1, -0.9], [1.0, -1.0, 0.5, -0.6, 0.3]


def series(values: list[float]) -> Series:
    return Series(dict(enumerate(values)))


def test_the_interval_is_students() -> None:
    found = series([1.0, 2.0, 3.0, 4.0, 5.0]).estimate
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((3.0, 3 - half, 3 + half, 5))
    assert math.isnan(series([1.0]).estimate.low) and series([1.0]).estimate.mean == 1.0
    assert series([]).estimate.n == 0
    assert series([0.0, 1.0] * 40).estimate.high == pytest.approx(0.5 + 2.042 * np.std([0, 1] * 40, ddof=1) / 80**0.5)


def test_the_interval_covers_a_true_zero_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    missed = np.mean([not (low.low < 0 < low.high) for low in (series(list(row)).estimate for row in draws)])
    assert missed == pytest.approx(0.05, abs=0.012)


def test_differences_are_paired_and_say_what_is_missing() -> None:
    one = Series({0: 3.0, 1: 5.0, 2: 9.0}, frozenset({"a, seed 3"}))
    other = Series({1: 1.0, 2: 2.0, 4: 0.0}, frozenset({"b, seed 0"}))
    difference = one - other
    assert difference.by_seed == {1: 4.0, 2: 7.0}
    assert difference.missing == {"a, seed 3", "b, seed 0"}
    assert spread_of([one, other]).by_seed == {1: 4.0, 2: 7.0}
    assert mean_of([one, other]).by_seed == {1: 3.0, 2: 5.5}
    nothing = combined(lambda *_: math.nan, one)
    assert nothing.by_seed == {} and "seed 1: nothing to compare" in nothing.missing


@pytest.mark.parametrize(
    ("values", "verdict"),
    [(UP, SHOWN), (DOWN, NOT_SHOWN), (OPEN, UNDECIDED), ([1.0], UNDECIDED), ([], UNDECIDED), ([1.0, 1.0], SHOWN)],
)
def test_greater(values: list[float], verdict: Verdict) -> None:
    assert About("x").greater(series(values)).verdict is verdict


@pytest.mark.parametrize(
    ("effects", "every", "none"),
    [
        ((UP, UP), SHOWN, SHOWN),
        ((UP, OPEN), UNDECIDED, SHOWN),  # none is below, and the mean is above
        ((OPEN, OPEN), UNDECIDED, UNDECIDED),
        (([5.0, 5.1, 4.9, 5.2, 5.0], DOWN), NOT_SHOWN, NOT_SHOWN),  # one is below, however high the mean
        ((UP, []), UNDECIDED, UNDECIDED),
    ],
)
def test_several_effects(effects: tuple[list[float], ...], every: Verdict, none: Verdict) -> None:
    named = {str(i): series(values) for i, values in enumerate(effects)}
    assert About("x").all_greater(named).verdict is every
    assert About("x").none_less(named).verdict is none


def levels(*means: float, noise: float = 0.1) -> dict[str, Series]:
    generator = np.random.default_rng(3)
    return {f"l{i}": series(list(mean + noise * generator.normal(size=6))) for i, mean in enumerate(means)}


def test_an_order_needs_every_step_and_the_whole() -> None:
    rising = About("x").ordered(levels(1, 2, 3))
    assert rising.verdict is SHOWN
    assert list(rising.effects) == ["l2 - l0", "l1 - l0", "l2 - l1"]
    assert About("x").ordered(levels(3, 2, 1)).verdict is NOT_SHOWN
    assert About("x").ordered(levels(1, 3, 2)).verdict is NOT_SHOWN  # a step is significantly down
    assert About("x").ordered(levels(1, 1, 1, noise=1.0)).verdict is UNDECIDED
    dipping = {"a": series([0.0] * 4), "b": series([2.0, 3.0, 2.0, 3.0]), "c": series([2.0, 2.0, 3.0, 2.9])}
    assert About("x").ordered(dipping).verdict is UNDECIDED  # the last step is down on average, but not surely
    assert About("x").ordered({**levels(1, 3), "none": series([])}).verdict is UNDECIDED


def test_an_equivalence_needs_the_whole_interval() -> None:
    assert About("x").within(series([0.1, -0.1, 0.2, 0.0]), 0.5).verdict is SHOWN
    assert About("x").within(series([0.1, -0.1, 0.2, 0.0]), 0.1).verdict is UNDECIDED
    assert About("x").within(series(UP), 0.5).verdict is NOT_SHOWN
    assert About("x").within(series(DOWN), 0.5).verdict is NOT_SHOWN
    assert About("x").within(series([0.1]), 0.5).verdict is UNDECIDED


def test_a_claim_names_what_it_lacks() -> None:
    claim = About("x", 4, "nats").greater(Series({0: 1.0, 1: 2.0}, frozenset({"b, seed 2", "a, seed 2"})))
    found = claim.as_dict()
    assert isinstance(claim, Claim)
    assert (found["statement"], found["verdict"], found["unit"]) == (4, "undecided", "nats")
    assert found["missing"] == ["a, seed 2", "b, seed 2"]
    assert found["effects"]["difference"]["by_seed"] == {0: 1.0, 1: 2.0}


def test_of_several_claims_one_that_is_not_shown_decides() -> None:
    assert overall([SHOWN, SHOWN]) is SHOWN
    assert overall([SHOWN, UNDECIDED]) is UNDECIDED
    assert overall([SHOWN, UNDECIDED, NOT_SHOWN]) is NOT_SHOWN
