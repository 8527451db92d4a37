"""What the best checkpoint can be chosen by: numbers that the run's steps have.

What a sweep may search for: the numbers that its runs will measure, known before any of them starts.

Settings that name code of this project, `_target_`: what may be named, and what fits the run's data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from gkd_rl.config import Config
from gkd_rl.config.choices import Metric
from reward_models.targets import ALLOWED_PACKAGES, find_targets, refusal

ALWAYS = ("loss", "entropy", "grad_norm", "completion_tokens", "truncated_share", "repetition")


def check_checkpoints(config: Config) -> Iterator[str]:
    """A best checkpoint without checkpoints, or by a number that no step has."""
    best = config.checkpoint.best
    if best is None:
        return
    if config.trainer.checkpoint_every == 0:
        yield f"checkpoint.best={best} with trainer.checkpoint_every=0: set trainer.checkpoint_every, or best to null."
    rewards = ["reward/mean", *(f"reward/{name}" for name in config.reward.components)]
    known = [*ALWAYS, "divergence", *(rewards if config.reward.components else [])]
    if best not in known:
        yield f"checkpoint.best={best} is not a number of this run's steps: it takes {', '.join(known)}, or null."


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


_PACKAGES = " or ".join(ALLOWED_PACKAGES)
EMBEDDED = "embedded"  # task.data of generated rows


def check_generated(config: Config) -> Iterator[str]:
    """A checker of generated text pays nothing for any other."""
    data, files = config.task.get("data", EMBEDDED), config.task.get("data_files")
    if data == EMBEDDED and not files:
        return
    for name, node in config.reward.components.items():
        if any(str(target).startswith("gkd_rl.data.embedded.") for _, target in find_targets(node, name)):
            yield (
                f"reward.components.{name} knows generated text only, and this run reads task.data_files={files} "
                f"(task.data={data}): choose another reward, e.g. reward=rouge."
            )


def check_targets(config: Config) -> Iterator[str]:
    """`_target_` names code that will be called, so it has to be this project's or a trusted package's."""
    instantiated = {"task": config.task}
    instantiated |= {f"reward.components.{name}": node for name, node in config.reward.components.items()}
    for key, node in instantiated.items():
        if not isinstance(node, dict) or "_target_" not in node:
            yield f"{key}._target_ is missing: it takes the dotted name of a class of {_PACKAGES}."
    free_form = instantiated | {"student.architecture": config.student.architecture}
    if config.teacher is not None:
        free_form["teacher.architecture"] = config.teacher.architecture
    for root, node in free_form.items():
        for key, target in find_targets(node, root):
            refused = refusal(key, target, config.trusted_packages)
            if refused is not None:
                yield refused
