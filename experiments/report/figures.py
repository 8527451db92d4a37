"""The figures of the report: which there are, the metrics' names and units, and the numbers that they show.

The page (`page/figures.js`) and the PNG and SVG files (`plots.py`) draw the one list `FIGURES`. A figure's metrics are
only those selected at first; the reader can select any metric that the runs have. `level`, `groups_of`, `lines_of` and
`hypervolume` compute for the files what the page's script computes for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gkd_rl.evaluation.uncertainty import estimate

BEFORE, AFTER, TEACHER = "student before", "student after", "teacher"
RESAMPLES = 4000
RunEntry = dict[str, Any]  # one of the payload's runs
NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "self_bleu": "Self-BLEU",
    "reward": "reward",
    "reward/mean": "reward, mean of a step",
    "reward/std": "reward, standard deviation of a step",
    "judge_minus_reward": "judge − reward",
    "completion_tokens": "length of completions",
    "copy_rate": "copied bigrams",
    "copied_bigrams": "copied bigrams",
    "divergence": "divergence D",
    "cross_entropy": "cross-entropy of the text",
    "reverse_kl": "reverse KL to the teacher",
    "forward_kl": "forward KL to the teacher",
    "kl_to_teacher": "KL to the teacher",
    "kl_to_initial": "KL to the student before",
    "gradient/divergence_share": "divergence's share of the gradient, 0 to 1",
    "gradient/cosine": "cosine of the two gradients, −1 to 1",
    "gradient/divergence_norm": "gradient norm of the divergence",
    "gradient/reward_norm": "gradient norm of the reward",
    "alpha_effective": "alpha in effect",
    "student_data": "steps on student data",
}
UNITS = {
    "rouge1": "0 to 100",
    "rouge2": "0 to 100",
    "rougeL": "0 to 100",
    "bleu": "0 to 100",
    "chrf": "0 to 100",
    "self_bleu": "0 to 100",
    "completion_tokens": "tokens",
    "copy_rate": "share",
    "copied_bigrams": "share",
    "repetition": "share",
    "truncated_share": "share",
    "padding_share": "share",
    "clipped_share": "share",
    "student_data": "share",
    "entropy": "nats per token",
}
UNIT_OF_PREFIX = {"time/": "seconds", "flops/": "FLOPs", "tokens/": "tokens"}
NATS = ("divergence", "cross_entropy", "kl", "kl_to_teacher", "kl_to_initial", "forward_kl", "reverse_kl")
LOWER = (
    "divergence",
    "cross_entropy",
    "kl",
    "repetition",
    "truncated",
    "self_bleu",
    "copy_rate",
    "copied",
    "loss",
    "failed",
    "time/",
)


def measure(key: str) -> dict[str, str]:
    """Label (of an unknown metric its key), unit ("" if unknown) and the better direction of a metric."""
    where, base = ("sampled", key.removeprefix("sampled/")) if key.startswith("sampled/") else ("", key)
    label = NAMES.get(base) or base.replace("/", ": ").replace("_", " ")
    unit = UNITS.get(base) or next((unit for prefix, unit in UNIT_OF_PREFIX.items() if base.startswith(prefix)), "")
    if not unit and base in NATS:
        unit = "nats per token"
    lower = any(word in base for word in LOWER)
    return {"label": f"{label}, {where}" if where else label, "unit": unit, "better": "lower" if lower else "higher"}


QUALITY = ("rouge2", "bleu", "chrf", "rougeL", "sampled/divergence")
TASK = ("rouge2", "bleu", "chrf", "rougeL", "reward", "sampled/divergence")  # the reward if answers are right or wrong
SAMPLED_QUALITY = ("sampled/rouge2", "sampled/bleu", "sampled/chrf", "sampled/reward", "reward")
REWARD = ("reward", "sampled/reward")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: its name in file names and links.
        kind: how it is drawn: scatter, curves, heat, sweep, profile, lengths or bars.
        title: its heading.
        caption: what it shows; `page/figures.js` adds how to read it.
        lacks: what runs need for it, shown if they do not have it.
        x: metrics, of which the first available one is drawn.
        y: likewise.
        drop: settings that vary along a line: points whose other settings agree are joined.
        along: the short name of the setting that orders the points of a line.
        panels: metrics of small plots, for each the first available one.
        least: how many points a line needs, or how many rows and columns a heat map needs.
        controls: whether the reader can select metrics.
    """

    key: str
    kind: str
    title: str
    caption: str
    lacks: str
    x: tuple[str, ...] = ()
    y: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    along: str = ""
    panels: tuple[tuple[str, ...], ...] = ()
    least: int = 1
    controls: bool = True


FIGURES = (
    Figure(
        "tradeoff",
        "scatter",
        "Quality against reward",
        "One point for each setting of alpha, as in Figure 5 of the paper.",
        "a finished run with two metrics",
        x=REWARD,
        y=QUALITY,
        drop=("alpha",),
        along="alpha",
    ),
    Figure(
        "curves",
        "curves",
        "Learning curves",
        "Metrics of the training steps, on the completions that the student was trained on.",
        "a run with a metrics.jsonl",
        panels=(("reward/mean", "loss"), ("divergence", "loss"), ("entropy",), ("completion_tokens",)),
    ),
    Figure(
        "hacking",
        "curves",
        "Signs of reward hacking",
        "While the reward rises: judge - reward falls, or completions become short, copied or repetitive. Copied "
        "bigrams are counted in the few texts kept in samples.jsonl.",
        "a run with a reward (alpha < 1); for judge - reward also reward.judge=COMPONENT",
        panels=(("judge_minus_reward",), ("completion_tokens",), ("copied_bigrams",), ("repetition",)),
        controls=False,
    ),
    Figure(
        "gradients",
        "curves",
        "Gradients of the two terms",
        "Share of the divergence in the sum of both norms, and the cosine of both gradients: below 0 they conflict.",
        "a run with both terms (0 < alpha < 1) and trainer.diagnose_every > 0",
        panels=(("gradient/divergence_share",), ("gradient/cosine",)),
        controls=False,
    ),
    Figure(
        "divergence_lambda",
        "heat",
        "Divergence and lambda",
        "Means over seeds by divergence and by the share of student data, as in Figures A.12 and A.13 of the paper.",
        "two divergences and two values of lmbda, e.g. divergence=forward_kl,jsd,reverse_kl lmbda=0,0.5,1",
        y=TASK,
        drop=("divergence", "lmbda"),
        least=2,
    ),
    Figure(
        "lambda",
        "sweep",
        "How much student data",
        "lambda is the probability that a step trains on completions that the student sampled, as in Figure 8 of the "
        "paper.",
        "two values of lmbda, e.g. lmbda=0,0.5,1",
        y=TASK,
        drop=("lmbda",),
        along="lmbda",
        least=2,
    ),
    Figure(
        "diversity",
        "scatter",
        "Diversity against quality",
        "By divergence and sampling temperature, as in Figure 4 of the paper; a Self-BLEU of 100 means that all "
        "samples of a prompt are the same.",
        "runs with evaluation.self_bleu_prompts > 0, e.g. divergence=forward_kl,jsd "
        "evaluation.self_bleu_temperature=0.3,1",
        x=("self_bleu",),
        y=SAMPLED_QUALITY,
        drop=("evaluation.self_bleu_temperature", "rollout.temperature"),
        along="temperature",
    ),
    Figure(
        "data",
        "sweep",
        "Data efficiency",
        "By the number of training prompts, as in Figure 3 of the paper.",
        "two values of trainer.train_rows, e.g. trainer.train_rows=100,1000,null",
        y=SAMPLED_QUALITY,
        drop=("trainer.train_rows", "task.train_size"),
        along="train_rows",
        least=2,
    ),
    Figure(
        "position",
        "profile",
        "Divergence by position",
        "Of the student after training, by the token's position in its sampled completions, up to the length that a "
        "tenth of them reaches in every run.",
        "a finished run with a teacher",
        controls=False,
    ),
    Figure(
        "lengths",
        "lengths",
        "Length of the completions",
        "Held-out rows by the number of words of the greedy completion.",
        "a run with a predictions.jsonl",
        controls=False,
    ),
    Figure(
        "cost",
        "bars",
        "Cost",
        "Cost of the training stage by phase, mean over seeds.",
        "a finished run",
        y=("time", "flops", "tokens"),
    ),
)


def listed() -> list[dict[str, Any]]:
    """The figures as JSON."""
    return [asdict(figure) for figure in FIGURES]


def first_of(wanted: Sequence[str], available: Collection[str]) -> str | None:
    """The first of the wanted metrics that is available."""
    return next((key for key in wanted if key in available), None)


def pareto_front(points_NX: np.ndarray) -> np.ndarray:
    """Which points no other point dominates (Pareto front), shape (N,), bool.

    Args:
        points_NX: shape (N, 2), higher is better on both axes; a point dominates another one if it is at least as good
            on both and better on one.
    """
    as_good = (points_NX[:, None] >= points_NX[None]).all(2)
    better = as_good & (points_NX[:, None] > points_NX[None]).any(2)
    return np.logical_not(better.any(axis=0))


def hypervolume(points_NX: np.ndarray, worst: Sequence[float], best: Sequence[float]) -> float:
    """Area that the points dominate, as a share of the box from `worst` to `best` (Zitzler and Thiele 1998)."""
    above = np.clip(points_NX - np.asarray(worst), 0, None)
    front = above[pareto_front(above)]
    xs, ys = front[np.argsort(front[:, 0])].T
    return float((np.diff(xs, prepend=0) * ys).sum() / np.prod(np.asarray(best) - np.asarray(worst)))


@dataclass(frozen=True)
class Level:
    """A mean with its interval: over seeds, or over rows if there is one run; low and high are NaN without one."""

    mean: float
    low: float
    high: float

    @property
    def bars(self) -> np.ndarray:
        """Lengths of the error bar below and above, shape (2, 1)."""
        return np.nan_to_num(np.array([[self.mean - self.low], [self.high - self.mean]]).clip(0))


def level(runs: Sequence[RunEntry], model: str, metric: str) -> Level | None:
    """A metric of a model over runs; None if no run has it."""
    found = [run["values"][model][metric] for run in runs if metric in run["values"].get(model, {})]
    if not found:
        return None
    if len(found) == 1:
        return Level(*(np.nan if value is None else float(value) for value in found[0][:3]))
    over = estimate(np.array([one[0] for one in found]), RESAMPLES, 0)
    return Level(over.mean, over.low, over.high)


def finished(runs: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs with results."""
    return [run for run in runs if AFTER in run["values"]]


def metrics_of(runs: Sequence[RunEntry]) -> set[str]:
    """Metrics of the student after training, of any run."""
    return {metric for run in finished(runs) for metric in run["values"][AFTER]}


def grouped(runs: Sequence[RunEntry], label_of: Callable[[RunEntry], str]) -> dict[str, list[RunEntry]]:
    """Label -> runs, ordered by the lowest alpha of each label and then by the label."""
    groups: dict[str, list[RunEntry]] = {}
    for run in runs:
        groups.setdefault(label_of(run), []).append(run)

    def alpha(run: RunEntry) -> float:
        value = run["settings"]["alpha"]
        return 2.0 if value is None else float(value)

    return dict(sorted(groups.items(), key=lambda item: (min(map(alpha, item[1])), item[0])))


def groups_of(runs: Sequence[RunEntry]) -> dict[str, list[RunEntry]]:
    """Groups of runs that differ in the seed only."""
    return grouped(runs, lambda run: run["group"])


def lines_of(figure: dict[str, Any], runs: Sequence[RunEntry]) -> dict[str, dict[str, list[RunEntry]]]:
    """Line of a figure -> its groups, in the order of the setting that varies along the line."""

    def along(item: tuple[str, list[RunEntry]]) -> float:
        value = item[1][0]["settings"].get(figure["along"])
        return 0.0 if value is None else float(value)

    lines = grouped(runs, lambda run: run["lines"][figure["key"]])
    return {label: dict(sorted(groups_of(own).items(), key=along)) for label, own in lines.items()}
