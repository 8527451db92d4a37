"""Tables of the speed page, from experiments/results/speed."""

from __future__ import annotations

from typing import Any

from blocks.values import at, load, plain, table

HEAD = "head, forward and backward: 512 tokens, 49,152 entries of the vocabulary, JSD(0.9)"
# what is compared, result file, index of our row (the first row is the opponent), the opponent
CPU = (
    (HEAD, "head", 1, "trl's chunked divergence"),
    ("the same with the policy gradient", "head", 2, "trl's chunked divergence"),
    ("distillation: alpha=1, 8 prompts of 64 to 384 tokens, K=1", "distillation", 1, "DistillationTrainer"),
    ("RL: alpha=0, 4 prompts, K=4", "rl_4", 1, "GRPOTrainer"),
    ("RL: alpha=0, 2 prompts of 384 tokens, K=8", "rl_8_long", 1, "GRPOTrainer"),
    ("joint: alpha=0.5, 4 prompts, K=4", "joint", 1, "one step of each trainer, 16 completions each"),
    ("T5-small's shapes: 4 documents of 512 tokens, K=4, alpha=0.5", "t5", 1, "generate, two forwards, all logits"),
    ("a teacher as large as the student, 4 prompts, K=4, alpha=0.5", "teacher_as_student", 1, "gkd_rl at alpha=0"),
)
GPU = (
    ("RL: 8 prompts, K=8", "rl", 1, "GRPOTrainer"),
    ("joint: alpha=0.5, 8 prompts, K=8", "joint", 1, "one step of each trainer"),
    ("the same with an 8-bit teacher", "joint_int8_teacher", 1, "one step of each trainer"),
    ("T5 v1.1: 8 documents of 512 tokens, K=4, alpha=0.5", "t5", 1, "generate, two forwards, all logits"),
)


def times(row: dict[str, Any]) -> str:
    """`6.5 [5.9, 7.2]`, how many times as fast as the first row of its file."""
    entry = row["times as fast" if "times as fast" in row else "times as fast as trl"]
    digits = 2 if entry["overall"] < 1.25 else 1
    return "{} [{}, {}]".format(*(f"{entry[key]:.{digits}f}" for key in ("overall", "low", "high")))


def steps(row: dict[str, Any]) -> str:
    """The same, counted in steps a second."""
    return "{} [{}, {}]".format(*(f"{row['times as many steps'][key]:.2f}" for key in ("overall", "low", "high")))


def seconds(row: dict[str, Any]) -> str:
    """Median seconds of a step, or of the head."""
    return _time(row["seconds a step" if "seconds a step" in row else "seconds"]["median"])


def _time(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 0.1 else f"{value:.{2 if value < 1 else 1 if value < 20 else 0}f} s"


def _memory(row: dict[str, Any]) -> str:
    found = row.get("GiB beside")
    return f", {found:.1f} GiB" if found is not None else f", {row['MiB']:,.0f} MiB" if "MiB" in row else ""


def cpu() -> str:
    """Every comparison on the CPU, in float32 and bfloat16."""
    rows = []
    for what, name, ours, opponent in CPU:
        cells = []
        for folder in ("speed", "speed/bfloat16"):
            found = load(f"{folder}/{name}")["rows"]
            cells += [f"{seconds(found[0])}{_memory(found[0])}", f"{seconds(found[ours])}{_memory(found[ours])}"]
            cells += [times(found[ours])]
        rows.append([what, opponent, *cells])
    sides = ("opponent", "ours", "times as fast")
    return table(["", "opponent", *(f"{dtype}: {side}" for dtype in ("float32", "bfloat16") for side in sides)], rows)


def cpu_steps() -> str:
    """Distillation counted in steps a second, where the sides have different numbers of tokens by chance."""
    rows = []
    for dtype, name in (
        ("float32, seed 8", "speed/distillation_seed_8"),
        ("bfloat16, seed 7", "speed/bfloat16/distillation"),
    ):
        row = load(name)["rows"][1]
        rows.append([dtype, times(row), steps(row)])
    return table(["distillation", "by tokens a second", "by steps a second"], rows)


def memory() -> str:
    """Memory of one update on the CPU and on an H100."""
    sides = {row["side"]: row["MiB"] for row in load("speed/memory")["rows"]}
    gpu = {row["side"]: row["MiB"] for row in load("speed/h100/memory")["rows"]}
    rows = [[side, f"{value / 1024:.1f} GiB", f"{gpu[side] / 1024:.1f} GiB"] for side, value in sides.items()]
    return table(["one update beside weights and optimiser", "CPU, float32", "H100, bfloat16"], rows, right=True)


def linear() -> str:
    """Tokens a second over batch sizes and prompt lengths."""
    rows = [
        [row["texts"], plain(row["tokens a second"]), plain(row["without attention"]), plain(row["GFLOP/s"]),
         f"{100 * row['padding']['median']:.0f}%"]
        for row in load("speed/linear")["rows"]
    ]  # fmt: skip
    return table(["", "tokens/s", "tokens/s without attention's part", "GFLOP/s", "padding"], rows, right=True)


def gpu() -> str:
    """Whole steps on an H100."""
    rows = []
    for what, name, ours, opponent in GPU:
        found = load(f"speed/h100/{name}")["rows"]
        rows.append(
            [what, opponent, *(f"{seconds(row)}{_memory(row)}" for row in (found[0], found[ours])), times(found[ours])]
        )
    first, second = load("speed/h100/distillation")["rows"]
    least = _time(second["seconds a step"]["least"])
    ours = f"{least} in the one round of three that compiled nothing{_memory(second)}"
    rows.insert(
        0,
        [
            "distillation: 32 prompts, K=1",
            "DistillationTrainer",
            f"{seconds(first)}{_memory(first)}",
            ours,
            "see below",
        ],
    )
    return table(["", "opponent", "opponent takes", "ours takes", "times as fast"], rows)


def gpu_head() -> str:
    """The output head on an H100."""
    rows = [
        [row["side"], seconds(row), f"{row['MiB'] / 1024:.2f} GiB", times(row)]
        for row in load("speed/h100/head")["rows"]
    ]
    return table(["head: 4,096 tokens, JSD(0.9)", "seconds", "memory", "times as fast"], rows, right=True)


def machines() -> str:
    """The machines and versions of the comparisons above."""
    rows = []
    for what, name in (("CPU", "speed/joint"), ("GPU", "speed/h100/joint")):
        found = at(name, "environment")
        device = ", ".join(found["cuda_devices"] or []) or f"{found['cpu_count']} cores of {found['cpu']}"
        packages = found["packages"]
        versions = ", ".join(f"{key} {packages[key]}" for key in ("torch", "transformers", "trl"))
        rows.append([what, device, f"{versions}, Python {found['python']}", found["git"]["revision"][:7]])
    return table(["", "device", "versions", "revision"], rows)
