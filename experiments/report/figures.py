"""What a metric is called, its unit and which way is better. A metric that is not named here gets its key as words.

The figures of the report: what each shows, what runs need for it, and what to run where they lack it.

The page (`page/figures.js`) and the PNG and SVG files (`stills.py`) draw this one list. A figure names metrics only as
what is selected first; all metrics that the runs have can be selected.

The Pareto front of points in two metrics and the area that it dominates (Zitzler and Thiele 1998).

What the page's script does with its object, for the still figures: groups, lines and means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gkd_rl.evaluation.uncertainty import estimate

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
    """Label, unit ("" where none is known) and the better direction of a metric."""
    where, base = ("sampled", key.removeprefix("sampled/")) if key.startswith("sampled/") else ("", key)
    label = NAMES.get(base) or base.replace("/", ": ").replace("_", " ")
    unit = UNITS.get(base) or next((unit for prefix, unit in UNIT_OF_PREFIX.items() if base.startswith(prefix)), "")
    if not unit and base in NATS:
        unit = "nats per token"
    lower = any(word in base for word in LOWER)
    return {"label": f"{label}, {where}" if where else label, "unit": unit, "better": "lower" if lower else "higher"}


QUALITY = ("rouge2", "bleu", "chrf", "rougeL", "sampled/divergence")
TASK = ("rouge2", "bleu", "chrf", "rougeL", "reward", "sampled/divergence")  # the reward where texts are right or wrong
SAMPLED_QUALITY = ("sampled/rouge2", "sampled/bleu", "sampled/chrf", "sampled/reward", "reward")
REWARD = ("reward", "sampled/reward")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: its name in files and links.
        kind: how it is drawn: scatter, curves, heat, sweep, profile, lengths or bars.
        title: its heading.
        caption: what it shows; how it is read stands in `page/figures.js`.
        lacks: what runs need for it, said where they do not have it.
        x: metrics, the first that is there is taken.
        y: likewise.
        drop: settings that vary along a line: points whose other settings agree are joined.
        along: the short name of the setting that orders the points of a line.
        panels: metrics of small plots, each the first that is there.
        least: how many points a line needs to be drawn, of a heat map how many rows and columns.
        controls: whether the reader selects metrics.
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
        "Numbers of the training steps, on what the student was trained on.",
        "a run with a metrics.jsonl",
        panels=(("reward/mean", "loss"), ("divergence", "loss"), ("entropy",), ("completion_tokens",)),
    ),
    Figure(
        "hacking",
        "curves",
        "Is the reward gamed?",
        "A policy that games its reward shows as a judge that falls behind, or as texts that get short, copied or "
        "repetitive while the reward rises. Copied bigrams are counted in the few texts kept in samples.jsonl.",
        "a run with a reward (alpha < 1); for judge - reward also reward.judge=COMPONENT",
        panels=(("judge_minus_reward",), ("completion_tokens",), ("copied_bigrams",), ("repetition",)),
        controls=False,
    ),
    Figure(
        "gradients",
        "curves",
        "Gradients of the two terms",
        "Share of the divergence in the sum of both norms, and the cosine between both gradients: below 0 they pull "
        "apart.",
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
        "lambda is the probability that a step trains on what the student wrote, as in Figure 8 of the paper.",
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
        "By divergence and sampling temperature, as in Figure 4 of the paper; a Self-BLEU of 100 says that all samples "
        "of a prompt are the same.",
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
        "Of the student after training, by the token's place in its sampled completions, as far as a tenth of them "
        "reach in every run.",
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
        "What the run's own stage took, by phase, mean over seeds.",
        "a finished run",
        y=("time", "flops", "tokens"),
    ),
)


def listed() -> list[dict[str, Any]]:
    """The figures as JSON."""
    return [asdict(figure) for figure in FIGURES]


def first_of(wanted: Sequence[str], there: Collection[str]) -> str | None:
    """The first of the wanted metrics that is there."""
    return next((key for key in wanted if key in there), None)


def pareto_front(points_NX: np.ndarray) -> np.ndarray:
    """Which points no other one dominates, shape (N,), bool.

    Args:
        points_NX: shape (N, 2), higher is better on both axes; a point dominates another one if it is as good on both
            and better on one.
    """
    as_good = (points_NX[:, None] >= points_NX[None]).all(2)
    better = as_good & (points_NX[:, None] > points_NX[None]).any(2)
    return np.logical_not(better.any(axis=0))


def hypervolume(points_NX: np.ndarray, worst: Sequence[float], best: Sequence[float]) -> float:
    """Area that the points dominate above the corner `worst`, as a share of the box from `worst` to `best`."""
    above = np.clip(points_NX - np.asarray(worst), 0, None)
    front = above[pareto_front(above)]
    xs, ys = front[np.argsort(front[:, 0])].T
    return float((np.diff(xs, prepend=0) * ys).sum() / np.prod(np.asarray(best) - np.asarray(worst)))


BEFORE, AFTER, TEACHER = "student before", "student after", "teacher"
RESAMPLES = 4000
RunEntry = dict[str, Any]  # one of the payload's runs


@dataclass(frozen=True)
class Level:
    """A mean with its interval: over seeds, or over rows where there is one run; low and high are NaN without one."""

    mean: float
    low: float
    high: float

    @property
    def bars(self) -> np.ndarray:
        """Lengths of the error bar below and above, shape (2, 1)."""
        return np.nan_to_num(np.array([[self.mean - self.low], [self.high - self.mean]]).clip(0))


def level(runs: Sequence[RunEntry], model: str, metric: str) -> Level | None:
    """A metric of a model over runs; None where no run has it."""
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
    """Label -> runs, by the lowest alpha of each and then by the label."""
    groups: dict[str, list[RunEntry]] = {}
    for run in runs:
        groups.setdefault(label_of(run), []).append(run)

    def alpha(run: RunEntry) -> float:
        value = run["settings"]["alpha"]
        return 2.0 if value is None else float(value)

    return dict(sorted(groups.items(), key=lambda item: (min(map(alpha, item[1])), item[0])))


def groups_of(runs: Sequence[RunEntry]) -> dict[str, list[RunEntry]]:
    """Runs that differ in their seed alone."""
    return grouped(runs, lambda run: run["group"])


def lines_of(figure: dict[str, Any], runs: Sequence[RunEntry]) -> dict[str, dict[str, list[RunEntry]]]:
    """Line of a figure -> its groups, in the order of the setting that varies along it."""

    def along(item: tuple[str, list[RunEntry]]) -> float:
        value = item[1][0]["settings"].get(figure["along"])
        return 0.0 if value is None else float(value)

    lines = grouped(runs, lambda run: run["lines"][figure["key"]])
    return {label: dict(sorted(groups_of(own).items(), key=along)) for label, own in lines.items()}
