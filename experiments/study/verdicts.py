"""When a claim counts as shown: rules on differences between runs of one seed, fixed before any run.

The interval is Student's, mean ± t s / √n at 95%, over seeds (students). A percentile bootstrap over five seeds
excludes a true difference of zero in one case of six, which is too often for a verdict. Verdicts:

    shown       the rule holds, and an interval excludes 0 in the claimed direction
    not shown   an interval excludes 0 in the other direction
    undecided   neither, or too few runs for an interval

Rules ("above 0" and "below 0" mean that the interval excludes 0 on that side):

    greater       a difference is above 0
    all_greater   each of several differences is above 0
    none_less     the mean of several differences is above 0, and none of them is below 0
    ordered       over the levels in the claimed order: no step is negative on average, no step is below 0,
                  and last - first is above 0
    within        equivalence: the whole interval lies inside a margin that is fixed in advance
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from gkd_rl.outputs.tables import Estimate

# 97.5% quantiles of Student's t with 1 to 30 degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


class Verdict(Enum):
    """Outcome of a claim."""

    shown = "shown"
    not_shown = "not shown"
    undecided = "undecided"


@dataclass(frozen=True)
class Series:
    """One number for each seed.

    Attributes:
        by_seed: seed -> number.
        missing: runs that are not finished or do not have the metric: `condition, seed 3`.
    """

    by_seed: Mapping[int, float]
    missing: frozenset[str] = frozenset()

    def __sub__(self, other: Series) -> Series:
        """Paired difference over the seeds that both have."""
        return combined(lambda one, two: one - two, self, other)

    @property
    def estimate(self) -> Estimate:
        """Mean and 95% interval; NaN bounds for one seed, all NaN for none."""
        values = list(self.by_seed.values())
        if len(values) < 2:
            return Estimate(values[0] if values else math.nan, math.nan, math.nan, len(values))
        mean, degrees = fmean(values), len(values) - 1
        half = T[min(degrees, len(T)) - 1] * stdev(values) / math.sqrt(len(values))
        return Estimate(mean, mean - half, mean + half, len(values))


def combined(function: Callable[..., float], *series: Series) -> Series:
    """A function of several series, seed by seed, over the seeds that all have.

    A seed whose value is NaN is left out and listed as missing.
    """
    shared = [seed for seed in series[0].by_seed if all(seed in one.by_seed for one in series)]
    values = {seed: function(*(one.by_seed[seed] for one in series)) for seed in sorted(shared)}
    missing = frozenset(f"seed {seed}: nothing to compare" for seed, value in values.items() if math.isnan(value))
    found = {seed: value for seed, value in values.items() if not math.isnan(value)}
    return Series(found, missing.union(*(one.missing for one in series)))


def mean_of(series: Iterable[Series]) -> Series:
    """The mean of several series, seed by seed."""
    return combined(lambda *values: fmean(values), *series)


def spread_of(series: Iterable[Series]) -> Series:
    """Largest minus smallest of several series, seed by seed."""
    return combined(lambda *values: max(values) - min(values), *series)


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict.

    Attributes:
        text: the claim, as a sentence about the effects.
        verdict: by one of the rules above.
        effects: label -> the difference that the verdict is computed from.
        statement: number of the paper's statement (`experiments/paper.py`); None: a claim of the study's own.
        unit: of the effects.
    """

    text: str
    verdict: Verdict
    effects: Mapping[str, Series]
    statement: int | None = None
    unit: str = ""

    @property
    def missing(self) -> list[str]:
        """Runs that the claim needs and that are not there."""
        return sorted(frozenset().union(*(effect.missing for effect in self.effects.values())))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        effects = {
            label: {**effect.estimate.as_dict(), "by_seed": dict(effect.by_seed)}
            for label, effect in self.effects.items()
        }
        facts = {"statement": self.statement, "claim": self.text, "verdict": self.verdict.value, "unit": self.unit}
        return {**facts, "effects": effects, "missing": self.missing}


@dataclass(frozen=True)
class About:
    """A claim's text, statement and unit; each method applies one rule to numbers. See `Claim`."""

    text: str
    statement: int | None = None
    unit: str = ""

    def greater(self, effect: Series) -> Claim:
        """Claim: the effect is above 0."""
        return self._claim(_above(effect), _below(effect), {"difference": effect})

    def all_greater(self, effects: Mapping[str, Series]) -> Claim:
        """Claim: every effect is above 0."""
        values = effects.values()
        return self._claim(all(map(_above, values)), any(map(_below, values)), effects)

    def none_less(self, effects: Mapping[str, Series]) -> Claim:
        """Claim: the mean of the effects is above 0, and none is below 0."""
        mean = mean_of(effects.values())
        down = any(map(_below, [mean, *effects.values()]))
        return self._claim(_above(mean) and not down, down, {"mean": mean, **effects})

    def ordered(self, levels: Mapping[str, Series]) -> Claim:
        """Claim: the levels rise in the order in which they are given."""
        steps = {f"{high} - {low}": levels[high] - levels[low] for low, high in pairwise(levels)}
        names = list(levels)
        whole = levels[names[-1]] - levels[names[0]]
        down = any(map(_below, [whole, *steps.values()]))
        rises = all(step.by_seed and fmean(step.by_seed.values()) >= 0 for step in steps.values())
        return self._claim(rises and _above(whole) and not down, down, {f"{names[-1]} - {names[0]}": whole, **steps})

    def within(self, effect: Series, margin: float) -> Claim:
        """Claim: the effect is smaller than `margin` in size, whatever its sign."""
        found = effect.estimate
        inside, outside = -margin < found.low and found.high < margin, found.low > margin or found.high < -margin
        return self._claim(inside, outside, {"difference": effect})

    def _claim(self, holds: bool, fails: bool, effects: Mapping[str, Series]) -> Claim:
        verdict = Verdict.shown if holds else Verdict.not_shown if fails else Verdict.undecided
        return Claim(self.text, verdict, dict(effects), self.statement, self.unit)


def _above(effect: Series) -> bool:
    """Whether the interval lies above 0; False without an interval (a comparison with NaN is False)."""
    return effect.estimate.low > 0


def _below(effect: Series) -> bool:
    """Whether the interval lies below 0."""
    return effect.estimate.high < 0


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Verdict on a statement: shown if all its claims are, not shown if one is not shown, else undecided."""
    found = set(verdicts)
    if Verdict.not_shown in found:
        return Verdict.not_shown
    return Verdict.shown if found == {Verdict.shown} else Verdict.undecided
