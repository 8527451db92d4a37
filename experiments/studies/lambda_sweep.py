"""Question: how much of the student's own text does it take?

Walks, forward KL, lambda = 0, 0.25, 0.5 and 1 (paper Figure 8), the students of `walk.py`. Statement 7: accuracy
rises from 0.25 over 0.5 to 1, and a quarter of own text gains less than a quarter of what all of it gains.
Expected: it rises; whether the first quarter gains little is open.
"""

from __future__ import annotations

from experiments.study.design import WALK_GATE, WALK_METRICS, Results, Study, walk
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined

LAMBDAS = {f"lambda {lmbda:g}": lmbda for lmbda in (0.0, 0.25, 0.5, 1.0)}


def claims(results: Results) -> list[Claim]:
    """Statement 7."""
    levels = {name: results.after(name, "reward") for name in LAMBDAS}
    none, quarter, _, full = levels.values()
    late = combined(lambda a, b, c: (c - a) / 4 - (b - a), none, quarter, full)
    rising = {name: series for name, series in levels.items() if LAMBDAS[name] > 0}
    return [
        About("walk: accuracy rises from lambda 0.25 over 0.5 to 1", 7, "share").ordered(rising),
        About("walk: a quarter of the gain at lambda 1 - the gain at lambda 0.25 is above 0", 7, "share").greater(late),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={name: walk("forward KL", lmbda) for name, lmbda in LAMBDAS.items()},
    seeds=(),
    metrics=WALK_METRICS,
    claims=claims,
    gate=WALK_GATE,
)


if __name__ == "__main__":
    main(STUDY)
