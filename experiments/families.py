"""Question: in each task family, what do distillation and RL + distillation change, beside more supervised training?

    python -m experiments.families                       # runs every family, method and seed, then prints the table
    python -m experiments.families --folder FOLDER       # resumes a study; finished runs are kept
    python -m experiments.families --read FOLDER         # the table from finished runs
    python -m experiments.families trainer.steps=100     # further overrides for every run

Runs experiment=FAMILY_sft, FAMILY_gkd and FAMILY_rl at the embedded scale. All methods of a seed start from one
supervised student; changes are the student after minus the student before, on the same rows with the same random
numbers; intervals are bootstraps over seeds.
Expected: GKD lowers D to the teacher in every family and seed, and RL + GKD raises the reward of sampled texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.study.plan import Job, Run, changes, conduct, levels, markdown_rows, parser_of, shown, shown_change

FAMILIES = {"xsum": "summarisation", "wmt": "translation", "gsm8k": "arithmetic", "instruct": "instructions"}
METHODS = {"sft": "more SFT", "gkd": "GKD", "rl": "RL + GKD"}
METRICS = {
    "rouge2": "ROUGE-2",
    "bleu": "BLEU",
    "reward": "reward",
    "sampled/reward": "reward, sampled",
    "judge_minus_reward": "judge - reward",
    "sampled/divergence": "D, sampled",
    "sampled/reverse_kl": "reverse KL, sampled",
    "completion_tokens": "length in tokens",
}
REFERENCE_METRIC = {"xsum": "rouge2", "wmt": "bleu"}  # of the others the reward says it all
QUIET = ("tracking=none", "save_model=false", "scale.threads=1")


def jobs_of(families: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[Job]:
    """Every run, those of a family and seed one after the other: they share supervised models."""
    return [
        Job(f"{family}_{method}/seed_{seed}", (f"experiment={family}_{method}", f"seed={seed}", *QUIET, *overrides))
        for family in families
        for seed in seeds
        for method in METHODS
    ]


def method_of(_: dict[str, Any], folder: Path) -> str:
    """FAMILY_METHOD, the folder that a run's seed lies in."""
    return folder.parent.name


def summarise(runs: list[Run]) -> dict[str, Any]:
    """For each family: levels of the teacher and the student before, and every method's paired changes."""
    summary: dict[str, Any] = {}
    for family in FAMILIES:
        groups = {name: [run for run in runs if run.method == f"{family}_{name}"] for name in METHODS}
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            continue
        dropped = set(REFERENCE_METRIC.values()) - {REFERENCE_METRIC.get(family)}
        keys = [key for key in METRICS if key not in dropped]
        one = groups.get("gkd") or next(iter(groups.values()))  # more SFT does not measure D
        summary[family] = {
            "settings": {name: group[0].results["settings"] for name, group in groups.items()},
            "teacher": levels(one, "teacher", keys),
            "student before": levels(one, "student before", keys),
            "change": {
                name: changes(group, {run.seed: run for run in group}, "student before", keys)
                for name, group in groups.items()
            },
        }
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """A row for each family and metric: two levels, then the change by each method."""
    rows = []
    for family, found in summary.items():
        for key, name in METRICS.items():
            if key not in found["student before"]:
                continue
            level = [
                shown(found[model][key]) if key in found[model] else "-" for model in ("teacher", "student before")
            ]
            by_method = [found["change"].get(method, {}).get(key) for method in METHODS]
            cells = [shown_change(entry) if entry else "-" for entry in by_method]
            rows.append([f"{FAMILIES[family]}: {name}", *level, *cells])
    return "\n".join(markdown_rows(["", "teacher", "student before", *METHODS.values()], rows))


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    arguments = parser.parse_args()
    wanted = arguments.families.split(",")
    for family in wanted:
        if family not in FAMILIES:
            parser.error(f"--families {family}: there is no such family; it takes {', '.join(FAMILIES)}.")
    conduct(
        arguments, "families", lambda seeds: jobs_of(wanted, seeds, arguments.overrides), method_of, summarise, markdown
    )


if __name__ == "__main__":
    main()
