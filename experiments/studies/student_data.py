"""How much of the training text the student should sample itself: lambda, with several divergences and few prompts.

- `lambda_sweep`: walks, lambda 0 to 1 (paper Figure 8).
- `divergence_by_lambda`: news, three divergences at three lambdas (paper Figures A.12 and A.13).
- `data_efficiency`: walks, all prompts and a quarter of them (paper Figure 3).

The walks have the students of `walk.py`.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.studies import NEWS_METRICS, SEEDS, WALK_GATE, WALK_METRICS, gkd, walk_gkd
from experiments.study import Results, Study
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined, mean_of

SWEEP = {f"lambda {lmbda:g}": lmbda for lmbda in (0.0, 0.25, 0.5, 1.0)}
THREE_DIVERGENCES = ("forward KL", "JSD(0.5)", "reverse KL")
THREE_LAMBDAS = (0.0, 0.5, 1.0)
METHODS = {"supervised KD": 0.0, "ImitKD": 0.5, "on-policy GKD": 1.0}
SIZES: dict[str, tuple[str, ...]] = {"all prompts": (), "a quarter": ("trainer.train_rows=250",)}


def sweep_claims(results: Results) -> list[Claim]:
    """Accuracy with the forward KL.

    Statement 7: it rises from lambda 0.25 over 0.5 to 1, and lambda = 0.25 gains less than a quarter of what lambda = 1
    gains.
    """
    levels = {name: results.after(name, "reward") for name in SWEEP}
    none, quarter, _, full = levels.values()
    late = combined(lambda a, b, c: (c - a) / 4 - (b - a), none, quarter, full)
    rising = {name: series for name, series in levels.items() if SWEEP[name] > 0}
    return [
        About("walk: accuracy rises from lambda 0.25 over 0.5 to 1", 7, "share").ordered(rising),
        About("walk: a quarter of the gain at lambda 1 - the gain at lambda 0.25 is above 0", 7, "share").greater(late),
    ]


def condition(divergence: str, lmbda: float) -> str:
    """Name of a condition of `divergence_by_lambda`."""
    return f"{divergence}, lambda {lmbda:g}"


def divergence_claims(results: Results) -> list[Claim]:
    """Greedy ROUGE-2, and D on the student's own samples.

    Statement 1: lambda = 1 gains on average over the divergences and loses in none. Statement 12: a step on rollouts
    takes 1.5 to 2.5 times the seconds of a step on references.
    """
    pairs = {one: (condition(one, 1), condition(one, 0)) for one in THREE_DIVERGENCES}
    gain = {one: results.after(on, "rouge2") - results.after(fixed, "rouge2") for one, (on, fixed) in pairs.items()}
    key = "sampled/divergence"
    closer = {one: results.after(fixed, key) - results.after(on, key) for one, (on, fixed) in pairs.items()}
    by_lambda = {
        f"lambda {lmbda:g}": mean_of(results.after(condition(one, lmbda), "rouge2") for one in THREE_DIVERGENCES)
        for lmbda in THREE_LAMBDAS
    }
    seconds = [mean_of(results.cost(pair[i], "time/total") for pair in pairs.values()) for i in (0, 1)]
    ratio = combined(lambda on, fixed: on / fixed - 2, *seconds)
    return [
        About("news: lambda = 1 - lambda = 0 in greedy ROUGE-2 is above 0", 1, "ROUGE-2").none_less(gain),
        About("news: a step on rollouts takes twice the seconds of one on references, +- 0.5 (ratio - 2)", 12).within(
            ratio, 0.5
        ),
        About("news: D on own samples, lambda = 0 - lambda = 1, is above 0", unit="nats").all_greater(closer),
        About("news: greedy ROUGE-2, mean over D, rises from lambda 0 over 0.5 to 1", unit="ROUGE-2").ordered(
            by_lambda
        ),
    ]


def data_claims(results: Results) -> list[Claim]:
    """Accuracy with all 1,000 and with the first 250 prompts; the supervised stage had all 1,000 references.

    Statement 8: at both sizes on-policy GKD is above supervised KD and ImitKD, and with a quarter of the prompts it is
    not below what these reach with all.
    """
    accuracy = {(name, size): results.after(f"{name}, {size}", "reward") for name in METHODS for size in SIZES}
    *others, own = METHODS
    above = {f"{size}, {name}": accuracy[own, size] - accuracy[name, size] for size in SIZES for name in others}
    reached = {name: accuracy[own, "a quarter"] - accuracy[name, "all prompts"] for name in others}
    return [
        About("walk: on-policy - the other method in accuracy, equal prompts, is above 0", 8, "share").all_greater(
            above
        ),
        About(
            "walk: on-policy with a quarter of the prompts - the other with all is not below 0", 8, "share"
        ).none_less(reached),
    ]


STUDIES = (
    Study(
        name="lambda_sweep",
        question="how much of the student's own text does it take?",
        expected="it rises; whether the first quarter gains little is open.",
        conditions={name: walk_gkd("forward KL", lmbda) for name, lmbda in SWEEP.items()},
        seeds=(),
        metrics=WALK_METRICS,
        claims=sweep_claims,
        gate=WALK_GATE,
    ),
    Study(
        name="divergence_by_lambda",
        question="does the student's own text help with every divergence, and is half of it in between?",
        expected="on own samples D is lower at lambda = 1; the greedy text of these short summaries hardly differs.",
        conditions={condition(one, lmbda): gkd(one, lmbda) for one in THREE_DIVERGENCES for lmbda in THREE_LAMBDAS},
        seeds=SEEDS,
        metrics=NEWS_METRICS,
        claims=divergence_claims,
    ),
    Study(
        name="data_efficiency",
        question="how few prompts does distillation on the student's own text need?",
        expected="it is above at both sizes; a quarter is about enough.",
        conditions={
            f"{name}, {size}": walk_gkd("forward KL", lmbda, *rows)
            for name, lmbda in METHODS.items()
            for size, rows in SIZES.items()
        },
        seeds=(),
        metrics=WALK_METRICS,
        claims=data_claims,
        gate=replace(WALK_GATE, students=5),
    ),
)


if __name__ == "__main__":
    main(*STUDIES)
