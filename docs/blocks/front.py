"""Blocks of README.md: what the first command prints, and what the project shows in three tables."""

from __future__ import annotations

from collections import Counter

from blocks.results import first_run, printed
from blocks.schema import keys
from blocks.speed import CPU, seconds, times
from blocks.values import at, claim, clock, load, table

FIRST = (
    "rouge2", "reward", "reward/all_supported", "judge_minus_reward", "completion_tokens", "sampled/reward",
    "sampled/divergence", "sampled/reverse_kl", "self_bleu",
)  # fmt: skip
SPEED = {"distillation": 2, "RL": 3, "joint": 5, "T5": 6}


def share(entry: dict[str, float]) -> str:
    """A share with two digits."""
    return f"{entry['mean']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def run() -> str:
    """The first command's table, some of its rows, and how long it took."""
    took, found = at("first_run", "seconds"), at("first_run", "environment")
    rows, machine = len(printed()), f"{found['cpu_count']} cores of {found['cpu']}"
    all_, steps = clock(took["all"]), clock(took["steps"])
    return (
        f"{first_run(FIRST)}\n\nSome of its {rows} rows; brackets are 95% bootstrap intervals over test rows. The "
        f"first time it took {all_} on {machine}, {steps} of them for the training steps; most of the rest is for the "
        "supervised models and the reward model, which are kept for later runs."
    )


def effect() -> str:
    """The walk study: accuracy by the share of student data."""
    found = load("paper/walk")
    rows = [["before training", share(next(iter(found["student before"].values()))["reward"]), "–"]]
    for name, row in found["student after"].items():
        rows.append([name, share(row["reward"]), share(found["change"][name]["reward"])])
    gain = claim("walk", "walk: lambda = 1 - lambda = 0 in accuracy, equal steps")["effects"]["difference"]
    up = sum(value > 0 for value in gain["by_seed"].values())
    cells = table(["", "accuracy on new problems", "change"], rows, right=True)
    return (
        f"{cells}\n\n{len(found['seeds'])} students, each distilled from one teacher with the forward KL; 95% Student "
        f"intervals. On-policy against references at equal steps: {share(gain)}, above zero in {up} of {gain['n']} "
        "students."
    )


def tradeoff() -> str:
    """The alpha study: quality against faithfulness."""
    found = load("paper/alpha")["student after"]
    rows = []
    for name, row in found.items():
        others = [f"{row[key]['mean']:.1f}" for key in ("rouge2", "completion_tokens")]
        rows.append([name, share(row["reward/all_supported"]), *others])
    return table(["", "faithfulness (the reward)", "ROUGE-2", "length in tokens"], rows, right=True)


def fast() -> str:
    """Whole steps beside trl: CPU in two number formats, and an H100."""
    gpu = {name: load(f"speed/h100/{name}")["rows"] for name in ("rl", "joint", "t5")}
    on_gpu = {"RL": "rl", "joint": "joint", "T5": "t5"}
    rows = []
    for label, index in SPEED.items():
        what, name, ours, opponent = CPU[index]
        cells = [f"{seconds(one[0])} → {seconds(one[ours])}, **{times(one[ours])}**"
                 for one in (load(f"{folder}/{name}")["rows"] for folder in ("speed", "speed/bfloat16"))]  # fmt: skip
        card = gpu[on_gpu[label]] if label in on_gpu else None
        cells.append("–" if card is None else f"{seconds(card[0])} → {seconds(card[1])}, **{times(card[1])}**")
        rows.append([what, opponent, *cells])
    versions = at("speed/joint", "environment", "packages")
    head = ["one training step", "beside", "CPU, float32", "CPU, bfloat16", "H100, bfloat16"]
    return (
        f"{table(head, rows)}\n\nSeconds of a step (theirs → ours) and how many times as many valid completion tokens "
        f"a second, with 95% intervals over rounds; trl {versions['trl']}, same models, prompts and number format; the "
        "sizes on the H100 are larger."
    )


def verdicts() -> str:
    """How the paper's statements fared."""
    found = load("paper/paper")
    tested = [one for one in found["statements"] if one["claims"]]
    counts = Counter(claim["verdict"] for one in tested for claim in one["claims"])
    said = ", ".join(f"{counts[name]} {name}" for name in ("shown", "undecided", "not shown"))
    runs = found["facts"]["runs"]
    return (
        f"{len(tested)} of {len(found['statements'])} statements of the paper are tested in {runs} runs at the "
        f"embedded scale, as {sum(counts.values())} claims fixed before the runs: {said}."
    )


def facts() -> str:
    """Sizes of the project."""
    return f"{len(keys())} typed settings, each with its range and default in the configuration reference."


BLOCKS = {
    "front-run": run,
    "front-effect": effect,
    "front-tradeoff": tradeoff,
    "front-speed": fast,
    "front-verdicts": verdicts,
    "front-facts": facts,
}
