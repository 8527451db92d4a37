"""Rules between settings of a whole run: stages, processes, checkpoints, objectives of a sweep, and `_target_` names.

See `rules.py` for what a rule is.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

from gkd_rl.config import Config
from gkd_rl.config.choices import Decay, Metric, TeacherPrompts
from gkd_rl.config.launch import processes
from gkd_rl.config.moved_targets import moved_target
from reward_models.targets import ALLOWED_PACKAGES, find_targets, refusal

# --- stages and processes --------------------------------------------------------------------------------------------


def _learning_rate(config: Config) -> Iterator[str]:
    """A cooldown is set with decay=cooldown only, and fits in the stage beside the warm-up."""
    stages = {"trainer": config.trainer, "student.sft": config.student.sft}
    stages["teacher.sft"] = None if config.teacher is None else config.teacher.sft
    for key, stage in stages.items():
        if stage is None:
            continue
        if (stage.decay is Decay.cooldown) != (stage.cooldown_steps > 0):
            yield (
                f"{key}.cooldown_steps={stage.cooldown_steps} with {key}.decay={stage.decay.value}: set "
                f"{key}.cooldown_steps above 0 with decay=cooldown, and to 0 with any other."
            )
        if stage.warmup_steps + stage.cooldown_steps > stage.steps and stage.cooldown_steps > 0:
            yield (
                f"{key}.steps={stage.steps} is less than {key}.warmup_steps={stage.warmup_steps} and "
                f"{key}.cooldown_steps={stage.cooldown_steps} together: lower these, or set {key}.decay=linear "
                f"{key}.cooldown_steps=0."
            )


_UNSUPPORTED = {  # variables of `accelerate launch` that split a model or wrap its forward pass
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def _processes(config: Config) -> Iterator[str]:
    """Every process holds whole models, and the rows of each step divide evenly."""
    for variable, name in _UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            yield (
                f"accelerate launch with {name} is not supported: rollouts and the output head use whole weights "
                "outside of the wrapped forward. Launch with whole models in every process: "
                "accelerate launch --config_file conf/accelerate/ddp.yaml."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        yield (
            f"accelerate launch with mixed_precision={precision} is not supported: the output head and the rollouts "
            "run outside of the wrapped forward. Leave it at no and set student.dtype=bfloat16 teacher.dtype=bfloat16."
        )
    if processes() > 1:
        yield from _uneven_rows(config, processes())


def _uneven_rows(config: Config, count: int) -> Iterator[str]:
    """Rows of a step that do not divide evenly among `count` processes."""
    rows = {"trainer.prompts_per_step": config.trainer.prompts_per_step}
    stages = {"student": config.student.sft, "teacher": None if config.teacher is None else config.teacher.sft}
    rows |= {f"{key}.sft.batch_size": sft.batch_size for key, sft in stages.items() if sft is not None}
    for key, value in rows.items():
        if value % count:
            yield (
                f"{key}={value} cannot be divided evenly among {count} processes: set {key} to a multiple of {count}, "
                f"e.g. {-(-value // count) * count}, or --num_processes to a divisor of {value}."
            )
    shuffled = config.teacher is not None and config.teacher.prompts is TeacherPrompts.shuffled
    if shuffled and config.trainer.prompts_per_step < 2 * count:
        yield (
            f"trainer.prompts_per_step={config.trainer.prompts_per_step} with teacher.prompts=shuffled leaves each of "
            f"{count} processes no other prompt: set trainer.prompts_per_step to {2 * count} or more, or "
            "teacher.prompts=own."
        )


# --- metrics that settings name --------------------------------------------------------------------------------------

_STEP_METRICS = ("loss", "entropy", "grad_norm", "completion_tokens", "truncated_share", "repetition")
_TEXT_METRICS = ("completion_tokens", "copy_rate", "repetition", "truncated_share")
_REFERENCE_METRICS = {Metric.rouge: ("rouge1", "rouge2", "rougeL"), Metric.bleu: ("bleu", "chrf")}


def _checkpoints(config: Config) -> Iterator[str]:
    """The best checkpoint is chosen by a metric of every step, among checkpoints that are written."""
    best = config.checkpoint.best
    if best is None:
        return
    if config.trainer.checkpoint_every == 0:
        yield (
            f"checkpoint.best={best} with trainer.checkpoint_every=0: set trainer.checkpoint_every above 0, or "
            "checkpoint.best=null."
        )
    rewards = ["reward/mean", *(f"reward/{name}" for name in config.reward.components)]
    known = [*_STEP_METRICS, "divergence", *(rewards if config.reward.components else [])]
    if best not in known:
        yield f"checkpoint.best={best} is not a metric of this run's steps: it takes {', '.join(known)}, or null."


def _sweep(config: Config) -> Iterator[str]:
    """Objectives of a sweep are metrics of the final evaluation of this run."""
    if not config.sweep.objectives:
        yield "sweep.objectives=[] leaves a sweeper no objective: sweep.objectives=[objective] is the default."
    known = ["objective", *_evaluation_metrics(config)]
    for name in config.sweep.objectives:
        if name not in known and not (config.reward.components and name.startswith(("reward/", "sampled/reward/"))):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"sweep.objectives={name} is not measured by this run.{hint} It takes names of {', '.join(known)}."


def _evaluation_metrics(config: Config) -> list[str]:
    """Names of the metrics of the student after training."""
    judged = config.reward.judge is not None
    text = [name for metric in config.evaluation.metrics for name in _REFERENCE_METRICS[metric]]
    text += ["reward", "reward_failed", *(["judge_minus_reward"] if judged else [])] if config.reward.components else []
    text += _TEXT_METRICS
    corpus = _REFERENCE_METRICS[Metric.bleu]
    names = text + [f"sampled/{name}" for name in text if name not in corpus]
    names += ["sampled/kl_to_initial"]
    names += ["self_bleu"] if config.evaluation.self_bleu_prompts else []
    names += [] if config.teacher is None else ["sampled/divergence", "sampled/forward_kl", "sampled/reverse_kl"]
    return names


# --- classes and functions that settings name ------------------------------------------------------------------------

_PACKAGES = " or ".join(ALLOWED_PACKAGES)
_EMBEDDED = "embedded"  # value of task.data for generated rows


def _targets(config: Config) -> Iterator[str]:
    """`_target_` names code that will be called: it is this project's or a trusted package's, by its present name."""
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
            moved = moved_target(str(target))
            refused = refusal(key, target, config.trusted_packages)
            if refused is not None:
                yield refused if moved is None else f"{key}={target} has moved: type {key}={moved}."


def _checkers_of_generated_text(config: Config) -> Iterator[str]:
    """A checker of generated text is used with generated text only."""
    data, files = config.task.get("data", _EMBEDDED), config.task.get("data_files")
    if data == _EMBEDDED and not files:
        return
    for name, node in config.reward.components.items():
        if any(str(target).startswith("gkd_rl.data.embedded.") for _, target in find_targets(node, name)):
            yield (
                f"reward.components.{name} checks generated text only, and this run reads task.data_files={files} "
                f"(task.data={data}): choose another reward, e.g. reward=rouge."
            )


RUN_RULES = (_learning_rate, _processes, _checkpoints, _sweep, _targets, _checkers_of_generated_text)
