"""Question: from one SFT student and at equal steps, what does each method change, and which claims of the paper show?

    python -m experiments.methods                          # runs every method for every seed, then prints the tables
    python -m experiments.methods --folder FOLDER          # resumes a study; finished runs are kept
    python -m experiments.methods --read FOLDER            # tables from finished runs
    python -m experiments.methods trainer.steps=400        # further overrides for every run

Every method starts from the same supervised student of its seed and takes the same number of optimiser steps on 64
sequences each (64 prompts x 1, or 16 prompts x 4 where a baseline compares rollouts of one prompt). Differences are
paired by seed, on the same rows with the same random numbers; intervals are bootstraps over seeds.

Claims, and what is fixed before the runs: a seed has room to learn if the forward KL from the teacher to its student
before training, on the student's own samples, is at least ROOM nats a token. (1) On-policy GKD ends with less of its
divergence on own samples than supervised KD with the same divergence, in every seed with room. (2) Self-BLEU at
temperature 1 is ordered forward KL < JSD(0.5) < JSD(0.9), and JSD(0.5) < reverse KL. (3) RL + GKD and RLEF* as
frontiers over alpha, by the area under each. (4) A teacher that reads another article hurts. (5) A fixed negative
advantage earns no reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.study.plan import (
    Job,
    Run,
    changes,
    conduct,
    levels,
    markdown_rows,
    over_seeds,
    parser_of,
    shown,
    shown_change,
)

ROOM = 0.2
ALPHAS = (0.25, 0.5, 0.75)
DISTIL = ("trainer.learning_rate=1.0e-3",)  # without a reward; chosen on validation rows with seeds 3 and 4
DIVERGENCES = {
    "GKD, forward KL": ("divergence=forward_kl",),
    "GKD, JSD(0.1)": ("divergence.beta=0.1",),
    "GKD, JSD(0.5)": ("divergence.beta=0.5",),
    "GKD, JSD(0.9)": ("divergence.beta=0.9",),
    "GKD, reverse KL": ("divergence=reverse_kl",),
}
METHODS: dict[str, tuple[str, ...]] = {
    "more SFT": ("experiment=sft", *DISTIL),
    "SeqKD": ("experiment=seqkd", *DISTIL),
    "supervised KD, forward KL": ("experiment=supervised_kd", *DISTIL),
    "supervised KD, JSD(0.5)": ("experiment=gkd", "lmbda=0", "divergence.beta=0.5", *DISTIL),
    "ImitKD": ("experiment=imitkd", *DISTIL),
    "f-distill": ("experiment=f_distill", *DISTIL),
    **{name: ("experiment=gkd", *overrides, *DISTIL) for name, overrides in DIVERGENCES.items()},
    "MiniLLM-style": ("experiment=minillm", *DISTIL),
    "self-distillation": ("experiment=self_distillation", *DISTIL),
    "RL, REINFORCE": ("experiment=rl",),
    "RL, GRPO": ("experiment=grpo",),
    "RL, PPO": ("experiment=ppo",),
    "distil, then RL": ("experiment=sequential",),
    **{f"RL + GKD, alpha {alpha:g}": ("experiment=rl_gkd", f"alpha={alpha:g}") for alpha in ALPHAS},
    **{f"RLEF*, alpha {alpha:g}": ("experiment=rlef", f"alpha={alpha:g}") for alpha in ALPHAS},
    "control: shuffled teacher": ("experiment=shuffled_teacher", *DISTIL),
    "control: fixed negative advantage": ("experiment=fixed_negative_advantage",),
}
OTHER_TEACHER = ("self-distillation",)  # whose divergences are to a teacher of their own
METRICS = {
    "rouge2": "ROUGE-2",
    "sampled/rouge2": "ROUGE-2, sampled",
    "reward/all_supported": "faithfulness",
    "sampled/reward": "faithfulness, sampled",
    "sampled/forward_kl": "forward KL to teacher",
    "sampled/reverse_kl": "reverse KL to teacher",
    "sampled/kl_to_initial": "KL to initial",
    "self_bleu": "Self-BLEU",
    "completion_tokens": "length",
}
COSTS = {
    "tokens/student_generated": "tokens generated",
    "tokens/student_trained": "tokens trained",
    "tokens/teacher_scored": "teacher tokens scored",
    "tokens/teacher_generated": "teacher tokens written",
    "time/total": "seconds",
    "flops/total": "FLOPs",
}
SCALE = ("reward=faithfulness", "student=t5_narrow", "trainer.steps=200", "task.test_size=1000", "scale.threads=1")
QUIET = ("tracking=none", "save_model=false")


def slug(method: str) -> str:
    """A method's folder."""
    return "".join(c if c.isalnum() or c == "." else "_" for c in method)


def jobs_of(methods: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[Job]:
    """Every run; those that train a supervised model come first, so that no two workers train the same one."""
    pairs = [(method, seed) for method in methods for seed in seeds]
    first = [("more SFT", seeds[0]), ("self-distillation", seeds[-1])]
    ordered = [pair for pair in first if pair in pairs] + [pair for pair in pairs if pair not in first]
    return [
        Job(f"{slug(method)}/seed_{seed}", (*METHODS[method], f"seed={seed}", *SCALE, *QUIET, *overrides))
        for method, seed in ordered
    ]


def method_of(_: dict[str, Any], folder: Path) -> str:
    """The method whose folder a run lies in."""
    names = {slug(method): method for method in METHODS}
    return names.get(folder.parent.name, folder.parent.name)


def summarise(runs: list[Run]) -> dict[str, Any]:
    """Levels, paired changes, costs and claims."""
    present = {run.method for run in runs}
    groups = {name: [run for run in runs if run.method == name] for name in METHODS if name in present}
    keys, own = list(METRICS), next(group for name, group in groups.items() if name not in OTHER_TEACHER)
    rows = {"teacher": levels(own, "teacher", keys), "student before": levels(own, "student before", keys)}
    return {
        "settings": {name: group[0].results["settings"] for name, group in groups.items()},
        "levels": rows | {name: levels(group, "student after", keys) for name, group in groups.items()},
        "change": {
            name: changes(group, {run.seed: run for run in group}, "student before", keys)
            for name, group in groups.items()
        },
        "cost": {
            name: {key: over_seeds({run.seed: cost_of(run, key) for run in group}) for key in COSTS}
            for name, group in groups.items()
        },
        "claims": claims(groups),
    }


def cost_of(run: Run, key: str) -> float:
    """A run's total; 0 where it never spent any."""
    cost = run.results["cost"]
    if key == "flops/total":
        return sum(value for name, value in cost.items() if name.startswith("flops/"))
    return float(cost.get(key, 0.0))


def claims(groups: dict[str, list[Run]]) -> dict[str, Any]:
    """Each claim by seed: the numbers, in how many seeds it holds, and the words for it."""
    after = {
        (name, metric): {run.seed: value for run in group if (value := run.value("student after", metric)) is not None}
        for name, group in groups.items()
        for metric in (*METRICS, "sampled/divergence")
    }

    def less(low: str, high: str, metric: str, seeds: Sequence[int] | None = None) -> dict[str, Any] | None:
        """`low` has less of the metric than `high`: the difference by seed and in how many seeds it is negative."""
        one, two = after.get((low, metric), {}), after.get((high, metric), {})
        by_seed = {seed: one[seed] - two[seed] for seed in one if seed in two and (seeds is None or seed in seeds)}
        if not by_seed:
            return None
        return {**over_seeds(by_seed), "holds": sum(value < 0 for value in by_seed.values())}

    some = next(iter(groups.values()))
    before = {run.seed: run.value("student before", "sampled/forward_kl") or 0.0 for run in some}
    room = [seed for seed, value in before.items() if value >= ROOM]
    found: dict[str, Any] = {}
    for name, metric in (("forward KL", "sampled/forward_kl"), ("JSD(0.5)", "sampled/divergence")):
        claim = f"on-policy < supervised in {name} to the teacher on own samples, trained on {name}, seeds with room"
        found[f"{claim} (>= {ROOM})"] = less(f"GKD, {name}", f"supervised KD, {name}", metric, room)
    chain = ["GKD, forward KL", "GKD, JSD(0.5)", "GKD, JSD(0.9)"]
    for low, high in [*pairwise(chain), ("GKD, JSD(0.5)", "GKD, reverse KL")]:
        found[f"Self-BLEU: {low} < {high}"] = less(low, high, "self_bleu")
    found["control: GKD < shuffled teacher in forward KL to the teacher"] = less(
        "GKD, JSD(0.9)", "control: shuffled teacher", "sampled/forward_kl"
    )
    found["control: shuffled teacher < more SFT in ROUGE-2"] = less("control: shuffled teacher", "more SFT", "rouge2")
    found["control: fixed negative advantage < RL in sampled faithfulness"] = less(
        "control: fixed negative advantage", "RL, REINFORCE", "sampled/reward"
    )
    found["forward KL of the student before, by seed"] = over_seeds(before)
    for quality, reward in (("rouge2", "reward/all_supported"), ("sampled/rouge2", "sampled/reward")):
        areas = {name: frontier_areas(groups, name, quality, reward) for name in ("RL + GKD", "RLEF*")}
        shared = areas["RL + GKD"].keys() & areas["RLEF*"].keys()
        if shared:
            by_seed = {seed: areas["RLEF*"][seed] - areas["RL + GKD"][seed] for seed in sorted(shared)}
            entry = {**over_seeds(by_seed), "holds": sum(value < 0 for value in by_seed.values())}
            found[f"frontier over alpha ({METRICS[quality]} x {METRICS[reward]}): area of RLEF* < RL + GKD"] = entry
    return {name: entry for name, entry in found.items() if entry is not None}


def frontier_areas(groups: dict[str, list[Run]], method: str, quality: str, reward: str) -> dict[int, float]:
    """By seed: the area that a method's points over alpha dominate, from (0, 0), in points of ROUGE-2 x share."""
    areas: dict[int, float] = {}
    members = [run for name, group in groups.items() if name.startswith(f"{method}, alpha") for run in group]
    for seed in sorted({run.seed for run in members}):
        own = [run for run in members if run.seed == seed]
        pairs = [(run.value("student after", quality), run.value("student after", reward)) for run in own]
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        if points:
            areas[seed] = dominated_area(points)
    return areas


def dominated_area(points: Sequence[tuple[float, float]]) -> float:
    """Area of the points that some given point is at least as good as on both axes, from (0, 0)."""
    area, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if y > height:
            area += x * (y - height)
            height = y
    return area


def markdown(summary: dict[str, Any]) -> str:
    """Levels, paired changes, costs, and the claims with the seeds in which they hold."""

    def table(name: str, columns: dict[str, str], cell: Callable[[dict[str, Any]], str]) -> list[str]:
        rows = [
            [method, *(cell(row[key]) if key in row else "-" for key in columns)]
            for method, row in summary[name].items()
        ]
        return markdown_rows(["", *columns.values()], rows)

    lines = ["Student after (mean over seeds, 95% interval over seeds):", "", *table("levels", METRICS, shown)]
    lines += ["", "Paired change against the student before (seeds up / seeds):", ""]
    lines += table("change", METRICS, shown_change)
    lines += ["", "Cost of the run's own stage (mean over seeds):", ""]
    lines += table("cost", COSTS, lambda entry: f"{entry['mean']:.3g}")
    lines += ["", "Claims (paired difference left - right over seeds; in how many seeds it is negative):", ""]
    rows = []
    for name, entry in summary["claims"].items():
        held, verdict = "-", "-"
        if "holds" in entry:
            held = f"{entry['holds']} of {entry['n']}"
            verdict = "shows" if entry["holds"] == entry["n"] else "does not show in every seed"
        rows.append([name, shown(entry), held, verdict])
    return "\n".join([*lines, *markdown_rows(["claim", "difference", "seeds", ""], rows)])


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--methods", default="all", help="parts of names with ; between them, or all")
    arguments = parser.parse_args()
    parts = [part.strip() for part in arguments.methods.split(";")]
    wanted = [name for name in METHODS if arguments.methods == "all" or any(part in name for part in parts)]
    conduct(
        arguments, "methods", lambda seeds: jobs_of(wanted, seeds, arguments.overrides), method_of, summarise, markdown
    )


if __name__ == "__main__":
    main()
