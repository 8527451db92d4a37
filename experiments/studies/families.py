"""Four families of tasks: what distillation and RL + distillation change, beside more supervised training.

Runs experiment=FAMILY_sft, FAMILY_gkd and FAMILY_rl as they are. All methods of a family and seed start from one
supervised student, which is under-trained so that a run ends in minutes; changes are the student after minus the
student before, on the same rows with the same random numbers.
"""

from __future__ import annotations

from experiments.studies import NO_FILES, ONE_THREAD
from experiments.study import Results, Study
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim

FAMILIES = {"xsum": "summarisation", "wmt": "translation", "gsm8k": "arithmetic", "instruct": "instructions"}
METHODS = {"sft": "more SFT", "gkd": "GKD", "rl": "RL + GKD"}


def condition(family: str, method: str) -> str:
    """Name of a condition, e.g. `translation, GKD`."""
    return f"{FAMILIES[family]}, {METHODS[method]}"


def claims(results: Results) -> list[Claim]:
    """What each objective contains: GKD the divergence, RL + GKD the reward."""
    divergence, reward = "sampled/divergence", "sampled/reward"
    closer = {
        name: results.before(condition(family, "gkd"), divergence) - results.after(condition(family, "gkd"), divergence)
        for family, name in FAMILIES.items()
    }
    gained = {name: results.change(condition(family, "rl"), reward) for family, name in FAMILIES.items()}
    return [
        About("D on own samples, before - after GKD, is above 0 in every family", unit="nats").all_greater(closer),
        About("sampled reward, after RL + GKD - before, is above 0 in every family").all_greater(gained),
    ]


STUDY = Study(
    name="families",
    question="in each task family, what do distillation and RL + distillation change, beside more supervised training?",
    expected="GKD lowers D to the teacher in every family and seed, and RL + GKD raises the reward of sampled texts.",
    conditions={
        condition(family, method): (f"experiment={family}_{method}", *NO_FILES, ONE_THREAD)
        for family in FAMILIES
        for method in METHODS
    },
    seeds=(10, 11, 12),
    metrics={
        "reward": "reward",
        "rouge2": "ROUGE-2",
        "bleu": "BLEU",
        "sampled/reward": "reward, sampled",
        "judge_minus_reward": "judge - reward",
        "sampled/divergence": "D, sampled",
        "sampled/reverse_kl": "reverse KL, sampled",
        "completion_tokens": "length in tokens",
    },
    claims=claims,
    in_paper=False,
)


if __name__ == "__main__":
    main(STUDY)
