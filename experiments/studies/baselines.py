"""Question: does on-policy GKD beat the other ways to distil, from one student and at equal steps?

News, greedy ROUGE-2 (paper Figures 1, 2, 9). GKD takes its best divergence; for each seed that is the best on average
over the other seeds, so that no seed is chosen by its own luck. Statement 2: GKD is above each of the four others.
Statement 3: the mean change over all methods is above 0, and no method's is below. "More SFT" is the control: as many
steps on the references.
Expected: SeqKD is the best in greedy ROUGE-2, at the price of diversity; none of the others does better than more
SFT.
"""

from __future__ import annotations

from statistics import fmean

from experiments.study.design import DIVERGENCES, NEWS_METRICS, SEEDS, Results, Study, gkd, method
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, Series

GKD = {f"GKD, {name}": gkd(name) for name in DIVERGENCES}
OTHERS = {
    "supervised KD": gkd("forward KL", 0),
    "SeqKD": method("seqkd"),
    "ImitKD": gkd("forward KL", 0.5),
    "f-distill": method("f_distill"),
}
CONTROL = "more SFT"


def best_elsewhere(series: list[Series]) -> Series:
    """Of several methods, each seed's value of the one that is best on average over the other seeds."""
    shared = [seed for seed in series[0].by_seed if all(seed in one.by_seed for one in series)]
    values: dict[int, float] = {}
    for seed in shared if len(shared) > 1 else []:
        means = [fmean(one.by_seed[other] for other in shared if other != seed) for one in series]
        values[seed] = series[means.index(max(means))].by_seed[seed]
    return Series(values, frozenset().union(*(one.missing for one in series)))


def claims(results: Results) -> list[Claim]:
    """Statements 2 and 3, and the control."""
    best = best_elsewhere([results.after(name, "rouge2") for name in GKD])
    over = {name: best - results.after(name, "rouge2") for name in OTHERS}
    change = {name: results.change(name, "rouge2") for name in (*GKD, *OTHERS)}
    return [
        About("GKD with its best D - each other method in greedy ROUGE-2 is above 0", 2, "ROUGE-2").all_greater(over),
        About("every distillation - the student before in greedy ROUGE-2 is not below 0", 3, "ROUGE-2").none_less(
            change
        ),
        About("GKD with its best D - more SFT in greedy ROUGE-2 is above 0", unit="ROUGE-2").greater(
            best - results.after(CONTROL, "rouge2")
        ),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={**GKD, **OTHERS, CONTROL: method("sft")},
    seeds=SEEDS,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
