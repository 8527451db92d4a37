"""Question: on a long chain with few references, is the student's own text worth its price?

Number walks of some 40 tokens: the student has 1,000 references, the teacher 20,000; a wrong move can be made good, a
wrong value cannot. lambda = 1, 0.5 and 0 with the forward KL at equal steps, and lambda = 0 with twice the steps,
which take about the seconds of lambda = 1. A student takes part if it solves 5% to 90% of 500 validation walks before
(`WALK_GATE`); the first eight of twelve seeds that do. The others are listed with what they solve. Statement 1:
lambda = 1 - lambda = 0 in accuracy is above 0. Statement 12: a step costs 1.5 to 2.5 times the seconds.
Expected: at equal steps a gain of 3 to 25 points, lambda = 0.5 in between, and less D on own samples; at equal
seconds a part of it.
"""

from __future__ import annotations

from experiments.study.design import WALK_GATE, WALK_METRICS, WALK_STEPS, Results, Study, walk
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined

NAMES = {lmbda: f"lambda {lmbda:g}" for lmbda in (0.0, 0.5, 1.0)}
LONGER = "lambda 0, twice the steps"


def claims(results: Results) -> list[Claim]:
    """Statements 1 and 12, equal seconds, D on own samples."""
    fixed, _, own = NAMES.values()
    accuracy = {name: results.after(name, "reward") for name in (*NAMES.values(), LONGER)}
    seconds = {name: results.cost(name, "time/total") for name in accuracy}
    ratio = combined(lambda on, off: on / off - 2, seconds[own], seconds[fixed])
    same = combined(lambda on, off: on / off - 1, seconds[own], seconds[LONGER])
    closer = results.after(fixed, "sampled/forward_kl") - results.after(own, "sampled/forward_kl")
    levels = {name: accuracy[name] for name in NAMES.values()}
    return [
        About("walk: lambda = 1 - lambda = 0 in accuracy, equal steps, is above 0", 1, "share").greater(
            accuracy[own] - accuracy[fixed]
        ),
        About("walk: a step on rollouts takes twice the seconds of one on references, +- 0.5 (ratio - 2)", 12).within(
            ratio, 0.5
        ),
        About("walk: lambda = 1 - lambda = 0 in accuracy, equal seconds, is above 0", unit="share").greater(
            accuracy[own] - accuracy[LONGER]
        ),
        About("walk: those seconds are equal, +- a quarter (ratio - 1)").within(same, 0.25),
        About("walk: accuracy rises from lambda 0 over 0.5 to 1", unit="share").ordered(levels),
        About("walk: forward KL on own samples, lambda = 0 - lambda = 1, is above 0", unit="nats").greater(closer),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        **{name: walk("forward KL", lmbda) for lmbda, name in NAMES.items()},
        LONGER: walk("forward KL", 0, steps=2 * WALK_STEPS),
    },
    seeds=(),
    metrics=WALK_METRICS,
    claims=claims,
    gate=WALK_GATE,
)


if __name__ == "__main__":
    main(STUDY)
