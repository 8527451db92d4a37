"""Number walks: students that have room to learn, from a long chain of tokens with few references.

A walk has some 40 tokens. The student has 1,000 references, the teacher 20,000; a model can correct a wrong move later,
but not a wrong value. A student takes part if it solves 5% to 90% of 500 validation walks before training
(`WALK_GATE`): the first eight of twelve seeds that do. The results list the others with the share that they solve.

- `walk`: lambda at equal steps and at equal seconds.
- `walk_baselines`: GKD beside the other ways to distil.
"""

from __future__ import annotations

from experiments.studies import WALK_GATE, WALK_METRICS, WALK_STEPS, walk_gkd, walk_method
from experiments.study import Results, Study
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined

NAMES = {lmbda: f"lambda {lmbda:g}" for lmbda in (0.0, 0.5, 1.0)}
LONGER = "lambda 0, twice the steps"
GKD = "on-policy GKD"
OTHERS = {
    "supervised KD": walk_gkd("forward KL", 0),
    "SeqKD": walk_method("seqkd"),
    "ImitKD": walk_gkd("forward KL", 0.5),
    "f-distill": walk_method("f_distill"),
}
CONTROL = "more SFT"


def lambda_claims(results: Results) -> list[Claim]:
    """Lambda 1, 0.5 and 0 at equal steps, and 0 with twice the steps, which take about the seconds of lambda = 1.

    Statement 1: lambda = 1 - lambda = 0 in accuracy is above 0. Statement 12: a step on rollouts takes 1.5 to 2.5 times
    the seconds of a step on references.
    """
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


def baseline_claims(results: Results) -> list[Claim]:
    """Accuracy at equal steps (paper Figures 1, 2, 9); "more SFT", as many steps on the references, is the control.

    Statement 2: GKD is above each of the four others. Statement 3: the mean change over all methods is above 0, and no
    method's is below.
    """
    own = results.after(GKD, "reward")
    over = {name: own - results.after(name, "reward") for name in OTHERS}
    change = {name: results.change(name, "reward") for name in (GKD, *OTHERS)}
    return [
        About("walk: GKD - each other method in accuracy is above 0", 2, "share").all_greater(over),
        About("walk: every distillation - the student before in accuracy is not below 0", 3, "share").none_less(change),
        About("walk: GKD - more SFT in accuracy is above 0", unit="share").greater(
            own - results.after(CONTROL, "reward")
        ),
    ]


STUDIES = (
    Study(
        name="walk",
        question="on a long chain with few references, is the student's own text worth its price?",
        expected="at equal steps a gain of 3 to 25 points, lambda = 0.5 in between, and less D on own samples; at "
        "equal seconds a part of it.",
        conditions={
            **{name: walk_gkd("forward KL", lmbda) for lmbda, name in NAMES.items()},
            LONGER: walk_gkd("forward KL", 0, steps=2 * WALK_STEPS),
        },
        seeds=(),
        metrics=WALK_METRICS,
        claims=lambda_claims,
        gate=WALK_GATE,
    ),
    Study(
        name="walk_baselines",
        question="does on-policy GKD beat the other ways to distil where the student has room?",
        expected="GKD is above supervised KD, SeqKD and more SFT by 5 to 20 points, and hardly above ImitKD and "
        "f-distill, which see the student's text in half of their steps; nothing falls below the student before.",
        conditions={GKD: walk_gkd("forward KL", 1), **OTHERS, CONTROL: walk_method("sft")},
        seeds=(),
        metrics=WALK_METRICS,
        claims=baseline_claims,
        gate=WALK_GATE,
    ),
)


if __name__ == "__main__":
    main(*STUDIES)
