"""Question: what does alpha trade, and does a teacher do better than the student's own start (RLEF*)?

News, faithfulness (exact checker) as the reward, JSD(0.9) to the teacher, unit scale, sequence_mean (paper Figure 5).
RLEF* holds the student to itself before training, over alphas of its own. Statement 9: over alpha faithfulness falls
and ROUGE-2 rises; at equal faithfulness RL + GKD is above RLEF* in ROUGE-2, as the mean gap between the two curves,
linear between their runs, over the faithfulness that both reach; up to alpha = 0.5 faithfulness is above the
teacher's.
Expected: the trade-off shows, but that the smallest alphas are hardly told apart; RL + GKD is above.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.study.design import DIVERGENCES, NEWS_METRICS, SEEDS, Results, Study, rewarded
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, combined

QUALITY, REWARD = "rouge2", "reward/all_supported"
TEACHER = {f"RL + GKD, alpha {alpha:g}": alpha for alpha in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)}
OWN = {f"RLEF*, alpha {alpha:g}": alpha for alpha in (0.1, 0.25, 0.5)}


def gap(*numbers: float) -> float:
    """Mean vertical distance of two curves over the rewards that both reach; NaN where they share none.

    Args:
        numbers: quality and reward of each run of the first curve, then of each run of the second.
    """
    points = np.array(numbers).reshape(-1, 2)
    first, second = (part[np.argsort(part[:, 1])] for part in np.split(points, [len(TEACHER)]))
    low, high = max(first[0, 1], second[0, 1]), min(first[-1, 1], second[-1, 1])
    if low >= high:
        return math.nan
    rewards = np.linspace(low, high, 101)
    return float(np.mean(np.interp(rewards, first[:, 1], first[:, 0]) - np.interp(rewards, second[:, 1], second[:, 0])))


def claims(results: Results) -> list[Claim]:
    """Statement 9."""
    reward = {name: results.after(name, REWARD) for name in TEACHER}
    quality = {name: results.after(name, QUALITY) for name in TEACHER}
    runs = [results.after(name, metric) for name in (*TEACHER, *OWN) for metric in (QUALITY, REWARD)]
    over_teacher = {
        name: reward[name] - results.teacher(name, REWARD) for name, alpha in TEACHER.items() if alpha <= 0.5
    }
    return [
        About("faithfulness falls in alpha", 9, "share").ordered(dict(reversed(reward.items()))),
        About("ROUGE-2 rises in alpha", 9, "ROUGE-2").ordered(quality),
        About("RL + GKD - RLEF* in ROUGE-2 at equal faithfulness is above 0", 9, "ROUGE-2").greater(
            combined(gap, *runs)
        ),
        About("faithfulness - the teacher's is above 0 up to alpha = 0.5", 9, "share").all_greater(over_teacher),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        **{name: rewarded("rl_gkd", alpha, *DIVERGENCES["JSD(0.9)"]) for name, alpha in TEACHER.items()},
        **{name: rewarded("rlef", alpha) for name, alpha in OWN.items()},
    },
    seeds=SEEDS,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
