"""Question: does the student's own text help with every divergence, and is half of it in between?

News, greedy ROUGE-2 and D on the student's own samples, for three divergences at lambda = 0, 0.5 and 1 (paper Figures
A.12 and A.13). Statement 1 holds if lambda = 1 gains on average over the divergences and loses in none. Statement 12
holds if the seconds of a step are 1.5 to 2.5 times those of a step on references.
Expected: on own samples D is lower at lambda = 1; the greedy text of these short summaries hardly differs.
"""

from __future__ import annotations

from experiments.study.design import NEWS_METRICS, SEEDS, Results, Study, gkd
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined, mean_of

DIVERGENCES = ("forward KL", "JSD(0.5)", "reverse KL")
LAMBDAS = (0.0, 0.5, 1.0)


def name(divergence: str, lmbda: float) -> str:
    """Of a condition."""
    return f"{divergence}, lambda {lmbda:g}"


def claims(results: Results) -> list[Claim]:
    """Statements 1 and 12 on the news, and what the student's own text does to D."""
    pairs = {one: (name(one, 1), name(one, 0)) for one in DIVERGENCES}
    gain = {one: results.after(on, "rouge2") - results.after(fixed, "rouge2") for one, (on, fixed) in pairs.items()}
    key = "sampled/divergence"
    closer = {one: results.after(fixed, key) - results.after(on, key) for one, (on, fixed) in pairs.items()}
    by_lambda = {
        f"lambda {lmbda:g}": mean_of(results.after(name(one, lmbda), "rouge2") for one in DIVERGENCES)
        for lmbda in LAMBDAS
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


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={name(one, lmbda): gkd(one, lmbda) for one in DIVERGENCES for lmbda in LAMBDAS},
    seeds=SEEDS,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
