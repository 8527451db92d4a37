"""Question: reward and teacher at once, one after the other, or one fading into the other?

News, three divergences: joint (alpha = 0.5), sequential (alpha = 1 for half of the steps, then 0) and annealed (alpha
from 1 to 0 along a line); the mean of alpha is 0.5 in each. Compared by what they all maximise on average, 0.5 E[r] -
0.5 E[D] on the student's samples after training.
Expected: joint ends highest, because the others end without the teacher and D grows there.
"""

from __future__ import annotations

from experiments.study.design import DIVERGENCES, FEW, NEWS_METRICS, Results, Study, rewarded
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, Series, combined

CHOSEN = ("forward KL", "reverse KL", "JSD(0.9)")
WAYS: dict[str, tuple[float, tuple[str, ...]]] = {
    "joint": (0.5, ()),
    "sequential": (0.0, ("alpha_schedule=switch",)),
    "annealed": (0.0, ("alpha_schedule=linear",)),
}


def claims(results: Results) -> list[Claim]:
    """Joint against the others, for each divergence."""

    def objective(name: str) -> Series:
        return combined(
            lambda reward, distance: 0.5 * reward - 0.5 * distance,
            results.after(name, "sampled/reward"),
            results.after(name, "sampled/divergence"),
        )

    found = []
    for divergence in CHOSEN:
        values = {way: objective(f"{way}, {divergence}") for way in WAYS}
        over = {way: values["joint"] - values[way] for way in ("sequential", "annealed")}
        found.append(About(f"{divergence}: joint - the other in 0.5 E[r] - 0.5 E[D] is above 0").all_greater(over))
    return found


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        f"{way}, {divergence}": rewarded("rl_gkd", alpha, *DIVERGENCES[divergence], *overrides)
        for divergence in CHOSEN
        for way, (alpha, overrides) in WAYS.items()
    },
    seeds=FEW,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
