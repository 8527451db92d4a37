"""Tables of the results pages: the first run, the paper's statements, studies, alpha, task families and methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blocks.values import at, load, plain, shown, shown_change, table

NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "reward": "reward",
    "reward/all_supported": "faithfulness",
    "reward/supported_share": "supported share",
    "reward/progress": "progress",
    "reward/entailment": "entailment",
    "judge_minus_reward": "judge − reward",
    "completion_tokens": "length in tokens",
    "copy_rate": "copied bigrams",
    "repetition": "repetition",
    "truncated_share": "truncated share",
    "self_bleu": "Self-BLEU",
    "sampled/rouge2": "ROUGE-2, sampled",
    "sampled/reward": "reward, sampled",
    "sampled/judge_minus_reward": "judge − reward, sampled",
    "sampled/divergence": "D, sampled",
    "sampled/forward_kl": "forward KL, sampled",
    "sampled/reverse_kl": "reverse KL, sampled",
    "sampled/kl_to_initial": "KL to initial student, sampled",
}
FAMILIES = {"xsum": "summarisation", "wmt": "translation", "gsm8k": "arithmetic", "instruct": "instructions"}
FAMILY_METHODS = {"sft": "more SFT", "gkd": "GKD", "rl": "RL + GKD"}
COSTS = {
    "tokens/student_trained": "tokens trained",
    "tokens/teacher_scored": "teacher tokens scored",
    "tokens/teacher_generated": "teacher tokens generated",
    "time/total": "seconds",
}
STUDIES = (
    "baselines", "divergence_by_lambda", "diversity", "walk", "walk_baselines", "lambda_sweep", "data_efficiency",
    "alpha", "self_distillation", "schedules", "beta_scale", "quantised_teacher", "reward_hacking",
)  # fmt: skip
SAMPLED = (  # of the table that a run prints, after the metrics of greedy texts
    "sampled/rouge2", "sampled/reward", "sampled/judge_minus_reward", "sampled/divergence", "sampled/reverse_kl",
    "sampled/kl_to_initial", "self_bleu",
)  # fmt: skip
COLUMNS = ("teacher", "student before", "student after", "after - before")


def name_of(metric: str) -> str:
    """A metric's heading; without a name of its own, its key as words."""
    temperature, _, rest = metric.removeprefix("temperature_").partition("/")
    if metric.startswith("temperature_"):
        return f"{name_of(rest)} at {temperature}"
    return NAMES.get(metric, metric.replace("/", ": ").replace("_", " "))


def levels(rows: Mapping[str, Mapping[str, Any]], cell: Callable[[Any], str] = shown) -> str:
    """A row for each condition, a column for each metric that any of them has."""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    cells = [[name, *(cell(row[key]) if key in row else "-" for key in metrics)] for name, row in rows.items()]
    return table(["", *map(name_of, metrics)], cells)


def measured(found: Mapping[str, Any]) -> str:
    """Effects of a claim in one cell."""
    effects = found["effects"]
    cells = [f"{label}: {shown(entry)}" if len(effects) > 1 else shown(entry) for label, entry in effects.items()]
    return "; ".join(cells) + (f" {found['unit']}" if found["unit"] else "")


def claims(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of claims."""
    return table(["claim", "measured", "verdict"], [[one["claim"], measured(one), one["verdict"]] for one in rows])


def printed() -> list[str]:
    """Metrics of the first run's table, in its order: greedy texts, then samples; no components of sampled rewards."""
    measured = load("first_run")["eval"]["student after"]
    greedy = [key for key in measured if not key.startswith(("sampled/", "temperature_")) and key not in SAMPLED]
    return [*greedy, *(key for key in SAMPLED if key in measured)]


def first_run(metrics: Sequence[str] = ()) -> str:
    """What the first command prints, as a table; `metrics` keeps some rows only."""
    results = load("first_run")["eval"]
    models = [model for model in COLUMNS if model in results]
    rows = [
        [name_of(key), *(shown(results[model][key]) if key in results[model] else "-" for model in models)]
        for key in metrics or printed()
    ]
    return table(["", *models], rows, right=True)


def statements() -> str:
    """The paper's statements and their verdicts."""
    rows = [[str(one["statement"]), one["text"], f"**{one['verdict'].partition(': ')[0]}**"] for one in _statements()]
    return table(["", "statement of the paper", "verdict"], rows)


def statement_details() -> str:
    """For each statement: what the paper reports, and every claim with its effects and verdict."""
    lines = []
    for one in _statements():
        verdict, _, reason = one["verdict"].partition(": ")
        lines += [f"**{one['statement']}. {one['text']}** – {verdict}", f"The paper reports: {one['reported']}."]
        found = [f"- {claim['claim']}: {measured(claim)} (**{claim['verdict']}**)" for claim in one["claims"]]
        lines += ["\n".join(found) or f"Left out: {reason}."]
    return "\n\n".join(lines)


def _statements() -> list[dict[str, Any]]:
    return load("paper/paper")["statements"]


def own_claims() -> str:
    """Claims of the studies that are not among the paper's statements."""
    return claims([one for study in STUDIES for one in load(f"paper/{study}")["claims"] if one["statement"] is None])


def study(name: str) -> str:
    """One study: question, expectation, students, levels, changes, cost, claims."""
    found = load(f"paper/{name}")
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [f"*{found['question'][0].upper()}{found['question'][1:]}* Expected before the runs: {found['expected']}"]
    lines += [f"`python -m experiments.paper --studies {name}`, seeds {seeds}."]
    if found["students"]:
        lines += [f"Students, {found['students']['rule']}:", candidates(found["students"]["candidates"])]
    lines += ["Trained students:", levels(found["student after"])]
    lines += ["After minus before training:", levels(found["change"])]
    cost = {
        row: {"seconds": one["time/total"], "tokens trained": one["tokens/student_trained"]}
        for row, one in found["cost"].items()
    }
    lines += ["Cost of a run:", levels(cost, lambda one: plain(one["mean"]))]
    return "\n\n".join([*lines, claims(found["claims"])])


def candidates(found: Mapping[str, Any]) -> str:
    """Supervised students that a study tried, and which of them take part."""
    cells = [[seed, "-" if one["value"] is None else plain(one["value"]), one[""]] for seed, one in found.items()]
    return table(["seed", "before training", ""], cells)


def walk_by_student() -> str:
    """Accuracy of every student of the walk under every condition."""
    found = load("paper/walk")
    after = {"before training": next(iter(found["student before"].values())), **found["student after"]}
    rows = [
        [name, *(plain(row["reward"]["by_seed"][str(seed)]) for seed in found["seeds"]), shown(row["reward"])]
        for name, row in after.items()
    ]
    return table(["accuracy, by student", *map(str, found["seeds"]), "mean"], rows)


def alpha_levels() -> str:
    """The trade-off over alpha: levels."""
    return levels(at("alpha_tradeoff", "levels"))


def alpha_changes(against: str) -> str:
    """Paired differences of the trade-off over alpha."""
    return levels(at("alpha_tradeoff", against), shown_change)


def families() -> str:
    """A row for each family and metric: two levels, then each method's change."""
    rows = []
    for family, found in load("families").items():
        for key, before in found["student before"].items():
            change = [found["change"][method].get(key) for method in FAMILY_METHODS]
            cells = [shown_change(one) if one else "-" for one in change]
            teacher = shown(found["teacher"][key]) if key in found["teacher"] else "-"
            rows.append([f"{FAMILIES[family]}: {name_of(key)}", teacher, shown(before), *cells])
    return table(["", "teacher", "student before", *FAMILY_METHODS.values()], rows)


def methods() -> str:
    """Every method from one student: what it reaches and what it costs."""
    found = load("methods")
    metrics = list(found["levels"]["teacher"])
    rows = []
    for name, row in found["levels"].items():
        cost = found["cost"].get(name)
        spent = ["-"] * len(COSTS) if cost is None else [_cost(key, cost[key]["mean"]) for key in COSTS]
        rows.append([name, *(shown(row[key]) if key in row else "-" for key in metrics), *spent])
    return table(["", *map(name_of, metrics), *COSTS.values()], rows)


def _cost(key: str, value: float) -> str:
    return plain(value) if key == "time/total" else f"{value / 1000:,.0f}k"


def method_changes() -> str:
    """Paired changes of every method against the student before."""
    return levels(at("methods", "change"), shown_change)


def method_claims() -> str:
    """Claims that the comparison of methods fixed before its runs."""
    rows = []
    for name, entry in at("methods", "claims").items():
        if "holds" not in entry:
            continue
        held, seeds = entry["holds"], entry["n"]
        rows.append(
            [name, shown(entry), f"{held} of {seeds}", "shows" if held == seeds else "does not show in every seed"]
        )
    return table(["claim (left − right, by seed)", "difference", "seeds", ""], rows)


def soak() -> str:
    """A long run, its last quarter beside its first after a warm-up."""
    rows = [
        [one["what"], plain(one["first"]), plain(one["last"]), "yes" if one["flat"] else "**no**"]
        for one in at("soak", "rows")
    ]
    return table(["", "first quarter", "last quarter", "within its limit"], rows, right=True)


def kills() -> str:
    """Runs that were killed and continued, beside undisturbed ones."""
    found = load("faults")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for one in found["rows"]:
        kinds.setdefault(one["case"], []).append(one)
    rows = []
    for case, runs in kinds.items():
        all_kills = [kill for run in runs for kill in run["kills"]]
        same = sum(not run["differences"] for run in runs)
        torn = sum("half-written" in kill for kill in all_kills)
        rows.append(
            [
                case,
                str(len(runs)),
                str(len(all_kills)),
                str(torn),
                str(sum(run["lost"] for run in runs)),
                f"{same} of {len(runs)}",
            ]
        )
    return table(
        ["runs", "number", "kills", "while a checkpoint was written", "steps lost and repeated", "bit-identical"], rows
    )
