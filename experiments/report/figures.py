"""The figures of the report: what each shows, what runs need for it, and what to run where they lack it.

The page (`page/figures.js`) and the PNG and SVG files (`stills.py`) draw this one list. A figure names metrics only as
what is selected first; all metrics that the runs have can be selected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
