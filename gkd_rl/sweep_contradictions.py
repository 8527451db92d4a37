"""What a sweep may search for: the numbers that its runs will measure, known before any of them starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from gkd_rl.choices import Metric
from gkd_rl.config import Config

TEXT_METRICS = ("completion_tokens", "copy_rate", "repetition", "truncated_share")
METRICS = {Metric.rouge: ("rouge1", "rouge2", "rougeL"), Metric.bleu: ("bleu", "chrf")}


def check_sweep(config: Config) -> Iterator[str]:
    """Objectives that no run of this kind measures, and none at all."""
    if not config.sweep.objectives:
        yield "sweep.objectives=[] leaves a sweeper nothing to search for: sweep.objectives=[objective] is the default."
    known = ["objective", *_measured(config)]
    for name in config.sweep.objectives:
        if name not in known and not (config.reward.components and name.startswith(("reward/", "sampled/reward/"))):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"sweep.objectives={name} is not measured by this run.{hint} It takes names of {', '.join(known)}."


def _measured(config: Config) -> list[str]:
    """Metrics of the student after training."""
    judged = config.reward.judge is not None
    text = [name for metric in config.evaluation.metrics for name in METRICS[metric]]
    text += ["reward", "reward_failed", *(["judge_minus_reward"] if judged else [])] if config.reward.components else []
    text += TEXT_METRICS
    corpus = METRICS[Metric.bleu]
    numbers = text + [f"sampled/{name}" for name in text if name not in corpus]
    numbers += ["sampled/kl_to_initial"]
    numbers += ["self_bleu"] if config.evaluation.self_bleu_prompts else []
    numbers += [] if config.teacher is None else ["sampled/divergence", "sampled/forward_kl", "sampled/reverse_kl"]
    return numbers
