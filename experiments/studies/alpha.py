"""What alpha trades: reward against closeness to the teacher, over its values and over its schedule.

- `alpha`: a student that is trained until it no longer improves, and RLEF* as the alternative (paper Figure 5).
- `alpha_tradeoff`: the student of `experiment=xsum_rl`, with as many steps of SFT as the control.
- `schedules`: alpha = 0.5 throughout, or 1 first and 0 later.
- `reward_hacking`: a reward that can be exploited, with and without the teacher.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.studies import DIVERGENCES, FEW, NEWS_METRICS, NO_FILES, ONE_THREAD, SEEDS, with_reward
from experiments.study import Results, Study
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, Series, combined

QUALITY, REWARD = "rouge2", "reward/all_supported"
TEACHER = {f"RL + GKD, alpha {alpha:g}": alpha for alpha in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)}
OWN = {f"RLEF*, alpha {alpha:g}": alpha for alpha in (0.1, 0.25, 0.5)}
TRADEOFF = {f"alpha = {alpha:g}": alpha for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)}
CONTROL = "more SFT"
CHOSEN = ("forward KL", "reverse KL", "JSD(0.9)")
SCHEDULES: dict[str, tuple[float, tuple[str, ...]]] = {
    "joint": (0.5, ()),
    "sequential": (0.0, ("alpha_schedule=switch",)),
    "annealed": (0.0, ("alpha_schedule=linear",)),
}
ALONE, HELD = "reward alone", "RL + GKD, alpha 0.5"


def gap(*numbers: float) -> float:
    """Mean vertical distance of two curves over the rewards that both reach; NaN if they share none.

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


def alpha_claims(results: Results) -> list[Claim]:
    """Faithfulness (exact checker) as the reward, JSD(0.9) to the teacher, unit scale, sequence_mean.

    RLEF* regularises towards the student before training, over alphas of its own. Statement 9: over alpha faithfulness
    falls and ROUGE-2 rises; at equal faithfulness RL + GKD is above RLEF* in ROUGE-2, as the mean gap between the two
    curves, linear between their runs, over the faithfulness that both reach; up to alpha = 0.5 faithfulness is above
    the teacher's.
    """
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


def tradeoff_claims(results: Results) -> list[Claim]:
    """Sampled reward, greedy ROUGE-2 and D on own samples, each over alpha and beside more SFT."""
    reward = {name: results.after(name, "sampled/reward") for name in TRADEOFF}
    quality = {name: results.after(name, QUALITY) for name in TRADEOFF}
    low = [name for name, alpha in TRADEOFF.items() if alpha <= 0.5]
    *_, full = TRADEOFF
    divergence, reverse_kl = "sampled/divergence", "sampled/reverse_kl"
    over_control = {name: reward[name] - results.after(CONTROL, "sampled/reward") for name in low}
    return [
        About("alpha = 1: D on own samples, before - after, is above 0", unit="nats").greater(
            results.before(full, divergence) - results.after(full, divergence)
        ),
        About("alpha = 1: greedy ROUGE-2, after - before, is above 0", unit="ROUGE-2").greater(
            results.change(full, QUALITY)
        ),
        About("sampled reward, after - before, is above 0 up to alpha = 0.5", unit="share").all_greater(
            {name: results.change(name, "sampled/reward") for name in low}
        ),
        About("sampled reward falls in alpha", unit="share").ordered(dict(reversed(reward.items()))),
        About("greedy ROUGE-2 rises in alpha", unit="ROUGE-2").ordered(quality),
        About("sampled reward - more SFT's is above 0 up to alpha = 0.5", unit="share").all_greater(over_control),
        About("reverse KL on own samples, more SFT - alpha = 1, is above 0", unit="nats").greater(
            results.after(CONTROL, reverse_kl) - results.after(full, reverse_kl)
        ),
    ]


def schedule_claims(results: Results) -> list[Claim]:
    """Three divergences: joint (alpha = 0.5), sequential (1 for half of the steps, then 0), annealed (1 to 0, linear).

    The mean of alpha is 0.5 in each. Compared by what all maximise on average, 0.5 E[r] - 0.5 E[D] on the student's
    samples after training.
    """

    def objective(name: str) -> Series:
        return combined(
            lambda reward, distance: 0.5 * reward - 0.5 * distance,
            results.after(name, "sampled/reward"),
            results.after(name, "sampled/divergence"),
        )

    found = []
    for divergence in CHOSEN:
        values = {schedule: objective(f"{schedule}, {divergence}") for schedule in SCHEDULES}
        over = {schedule: values["joint"] - values[schedule] for schedule in ("sequential", "annealed")}
        found.append(About(f"{divergence}: joint - the other in 0.5 E[r] - 0.5 E[D] is above 0").all_greater(over))
    return found


def hacking_claims(results: Results) -> list[Claim]:
    """The reward is a small entailment model and a penalty for fewer than twelve words; the exact checker judges.

    The checker is not part of the reward: judge - reward below 0 is reward that the checker does not confirm.
    """
    difference, length = "judge_minus_reward", "completion_tokens"
    return [
        About("reward alone: judge - reward, before - after, is above 0").greater(
            results.before(ALONE, difference) - results.after(ALONE, difference)
        ),
        About("judge - reward, RL + GKD - reward alone, is above 0").greater(
            results.after(HELD, difference) - results.after(ALONE, difference)
        ),
        About("reward alone: length, before - after, is above 0", unit="tokens").greater(
            results.before(ALONE, length) - results.after(ALONE, length)
        ),
    ]


STUDIES = (
    Study(
        name="alpha",
        question="what does alpha trade, and does a teacher do better than the student's own start (RLEF*)?",
        expected="the trade-off shows, but that the smallest alphas are hardly told apart; RL + GKD is above.",
        conditions={
            **{name: with_reward("rl_gkd", alpha, *DIVERGENCES["JSD(0.9)"]) for name, alpha in TEACHER.items()},
            **{name: with_reward("rlef", alpha) for name, alpha in OWN.items()},
        },
        seeds=SEEDS,
        metrics=NEWS_METRICS,
        claims=alpha_claims,
    ),
    Study(
        name="alpha_tradeoff",
        question="what does alpha trade, reward against closeness to the teacher, and is it more than extra training "
        "steps?",
        expected="D falls and ROUGE-2 rises at alpha = 1; reward rises at alpha <= 0.5; reward falls and ROUGE-2 rises "
        "in alpha.",
        conditions={
            **{
                name: ("experiment=xsum_rl", "reward=faithfulness", f"alpha={alpha:g}", ONE_THREAD, *NO_FILES)
                for name, alpha in TRADEOFF.items()
            },
            CONTROL: ("experiment=sft", "reward=faithfulness", ONE_THREAD, *NO_FILES),
        },
        seeds=(0, 1, 2, 3, 4),
        metrics={
            **NEWS_METRICS,
            "reward/supported_share": "supported share",
            "sampled/reverse_kl": "reverse KL to teacher",
        },
        claims=tradeoff_claims,
        in_paper=False,
    ),
    Study(
        name="schedules",
        question="reward and teacher at once, one after the other, or one fading into the other?",
        expected="joint ends highest, because the others end without the teacher and D grows there.",
        conditions={
            f"{schedule}, {divergence}": with_reward("rl_gkd", alpha, *DIVERGENCES[divergence], *overrides)
            for divergence in CHOSEN
            for schedule, (alpha, overrides) in SCHEDULES.items()
        },
        seeds=FEW,
        metrics=NEWS_METRICS,
        claims=schedule_claims,
    ),
    Study(
        name="reward_hacking",
        question="does a policy game a reward that is a model, and does a teacher hold it back?",
        expected="judge - reward falls and summaries get shorter at alpha = 0, and less so at 0.5.",
        conditions={
            ALONE: with_reward("rl", 0, "reward=entailment_news"),
            HELD: with_reward("rl_gkd", 0.5, "reward=entailment_news"),
        },
        seeds=FEW,
        metrics={"reward": "reward", "judge_minus_reward": "judge - reward", **NEWS_METRICS},
        claims=hacking_claims,
    ),
)


if __name__ == "__main__":
    main(*STUDIES)
