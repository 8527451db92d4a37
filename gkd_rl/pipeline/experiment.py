"""One run from start to table: supervised stages, evaluation before, training, evaluation after, output folder.

The paper's pipeline: teacher and student are first fine-tuned on the references (a checkpoint skips that), then the
student is trained on its own text. Supervised models are kept in a cache by the hash of all they depend on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from gkd_rl.config import Config
from gkd_rl.config.launch import Stopped, StopRequest, handling_signals, is_main_process
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.data.task import Task, data_facts
from gkd_rl.evaluation.evaluator import Evaluation
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.loading import model_class, save_model
from gkd_rl.outputs.json_files import write_json, write_whole
from gkd_rl.outputs.run_record import environment_record
from gkd_rl.outputs.tracking import Listing, Tracker, sweep_of
from gkd_rl.pipeline.build import Models, ResolvedModels, build_reward, build_task, resolve_models
from gkd_rl.pipeline.build_trainer import build_evaluator, build_trainer
from gkd_rl.pipeline.checkpoints import Checkpoints
from gkd_rl.pipeline.memory import explaining_memory_shortage, longest, plan_memory, with_micro_batches
from gkd_rl.pipeline.models import (
    audit_teacher,
    build_teacher_output_cache,
    check_teacher,
    prepare_models,
    with_samples,
)
from gkd_rl.pipeline.results import Results, model_card_of, write_results
from gkd_rl.planning.memory_plan import GIB, peak_bytes, plan_lines, reset_peak
from gkd_rl.training.cost import CostTotals, profile_lines
from gkd_rl.training.processes import gather_objects, progress, rank_seed, start_processes
from gkd_rl.training.state import POST_MORTEM, weights_digest, write_post_mortem
from gkd_rl.training.trainer import StepRecord, Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

log = logging.getLogger(__name__)


def run_configured(config: Config, composed: DictConfig, output_dir: Path) -> Results:
    """Train and evaluate as configured; the main process writes everything to `output_dir`, eval.json last.

    Returns:
        Evaluations of the teacher and of the student before and after training, with costs.
    """
    if config.scale.threads > 0:
        torch.set_num_threads(config.scale.threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge_score announces its tokenizer at every metric
    torch.manual_seed(rank_seed(config.seed))
    log.info(config.scale.notice)
    task, reward = build_task(config), build_reward(config)
    if not is_main_process():
        with handling_signals() as stop:
            return _run(config, task, reward, RunOutput(output_dir, None, stop))

    output_dir.mkdir(parents=True, exist_ok=True)
    settings = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
    write_whole(output_dir / "config.yaml", OmegaConf.to_yaml(composed, resolve=True).encode("utf-8"))
    write_json(output_dir / "environment.json", environment_record())
    tracking = config.tracking
    group = tracking.group or sweep_of(output_dir) or config.name
    listing = Listing(tracking.project, group, config.name, tracking.job_type, tuple(tracking.tags))
    with handling_signals() as stop, Tracker(output_dir, tracking.wandb.value, listing, settings) as tracker:
        return _run(config, task, reward, RunOutput(output_dir, tracker, stop))


@dataclass(frozen=True)
class RunOutput:
    """Where a run writes (the main process alone has a tracker), and whether it is to stop."""

    folder: Path
    tracker: Tracker | None
    stop: StopRequest


@explaining_memory_shortage
def _run(config: Config, task: Task, reward: Composite | None, output: RunOutput) -> Results:
    """All stages, then the results, which the main process writes."""
    tracker, output_dir = output.tracker, output.folder
    accelerator = start_processes()
    check_teacher(config.teacher)
    train, held_out = task.examples("train"), task.examples(config.evaluation.split)
    prompts = train[: config.trainer.train_rows]
    reset_peak(accelerator.device)
    resolved = resolve_models(config, task, accelerator.device)
    facts = data_facts(task, resolved.codec, {"train": train, config.evaluation.split: held_out})
    config = _sized(config, resolved, train, accelerator.device)
    cost = CostTotals()
    models = prepare_models(config, resolved, train, accelerator)
    audit = audit_teacher(config, resolved, models, train, held_out, accelerator)
    models = with_samples(config, resolved, models, train, prompts, cost)
    models = replace(models, outputs=build_teacher_output_cache(config, resolved, models, train))
    stream = PromptStream(prompts, config.trainer.prompts_per_step, config.seed)
    evaluator = build_evaluator(config, models, reward, held_out)
    trainer = build_trainer(config, models, reward, stream, accelerator)

    references, asked = [example.reference for example in held_out], [example.prompt for example in held_out]
    kept = _checkpoints(config, models, trainer, cost, output)

    def evaluate() -> dict[str, Evaluation]:
        measured = {"teacher": models.teacher, "student before": models.student}
        return {name: evaluator.evaluate(one, name) for name, one in measured.items() if one is not None}

    torch.manual_seed(rank_seed(config.seed))  # of dropout; the models may come from the cache or have drawn numbers
    evaluations, taken = kept.begin(evaluate, references, config.resume is not None)
    _train(config, kept, taken, output.stop)
    evaluations["student after"] = evaluator.evaluate(models.student, "student after")

    memory: dict[str, str | int] = {"device": accelerator.device.type, "peak_bytes": peak_bytes(accelerator.device)}
    log.info("peak memory: %.2f GiB (%s)", peak_bytes(accelerator.device) / GIB, accelerator.device)
    results = Results(
        evaluations, references, config.evaluation.bootstrap_samples, cost.as_dict(), memory, facts, audit, asked
    )
    if tracker is None:
        return results
    tracker.summary({"cost": results.cost, **results.as_dict()})
    if config.save_model:
        card = model_card_of(results, config, model_class(models.student.model.config))
        head = None if models.critic is None else models.critic.head
        student = models.student if isinstance(models.student, AdaptedModel) else models.student.model
        save_model(output_dir / "model", student, models.codec.tokenizer, card, head)
        best = f"The best checkpoint by {config.checkpoint.best} of a run of gkd_rl.\n"
        kept.write_best(lambda: save_model(output_dir / "model_best", student, models.codec.tokenizer, best, head))
    table = write_results(output_dir, results, config)
    kept.remove()
    warnings = "".join(f"\n{line}" for line in trainer.guard.summary_lines(config.trainer.steps))
    print(f"{table}{warnings}\nRun folder: {output_dir}")  # noqa: T201
    return results


def _checkpoints(config: Config, models: Models, trainer: Trainer, cost: CostTotals, output: RunOutput) -> Checkpoints:
    """Of this run, with the hashes of its models where any are made or read."""
    used = config.resume is not None or config.trainer.checkpoint_every > 0
    known = {"student": models.student, "teacher": models.teacher} if used else {}
    digests = {name: weights_digest(model) for name, model in known.items() if model is not None}
    every = config.trainer.checkpoint_every
    return Checkpoints(output.folder, config.checkpoint, every, trainer, cost, output.tracker, digests)


def _sized(config: Config, resolved: ResolvedModels, train: list[Example], device: torch.device) -> Config:
    """Micro-batches that are left open become the largest that fit in memory."""
    settings = config.teacher
    stages = (config.trainer, config.student.sft, None if settings is None else settings.sft)
    if all(stage is None or stage.micro_batch_size or stage.tokens_per_micro_batch for stage in stages):
        return config
    plan = plan_memory(config, longest(config, resolved.codec, train), device, resolved)
    log.info("memory plan:\n%s", "\n".join(plan_lines(plan)))
    if plan.peak > plan.available:
        log.warning(
            "the plan's peak is %.2f GiB of %.2f GiB that there are: python -m gkd_rl.doctor shows what to change",
            plan.peak / GIB,
            plan.available / GIB,
        )
    return with_micro_batches(config, plan)


def _train(config: Config, kept: Checkpoints, taken: int, stop: StopRequest) -> None:
    """The run's own stage after the steps that were taken: every step's numbers, samples at log steps, checkpoints."""
    settings, own, start = config.trainer, CostTotals(), time.perf_counter()
    trainer, tracker = kept.trainer, kept.tracker
    with progress(settings.steps, f"student: alpha={config.alpha:g}", "step") as bar, stop.after_the_step():
        bar.update(taken)

        def after_step(step: int, record: StepRecord) -> None:
            kept.cost.add(record.metrics)
            own.add(record.metrics)
            if tracker is not None:
                tracker.log_step(step, record.metrics)
                if step % settings.log_every == 0 or step == settings.steps:
                    tracker.log_samples(step, sample_rows(record, settings.samples_per_log))
            shown = {name: record.metrics[name] for name in ("divergence", "reward/mean") if name in record.metrics}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
            bar.update()
            _stop_if_exhausted(step, record, kept)
            kept.after_step(step, record.metrics, settings.steps)
            _stop_if_asked(step, stop, kept)

        trainer.run(settings.steps, after_step, taken)
    if settings.profile and settings.steps > taken:
        seconds = time.perf_counter() - start
        log.info("%s", "\n".join(profile_lines(own.as_dict(), settings.steps - taken, seconds)))


def _stop_if_exhausted(step: int, record: StepRecord, kept: Checkpoints) -> None:
    """Too many steps in a row were skipped: keep the last batch, and end."""
    if kept.trainer.guard.exhausted and kept.tracker is not None:
        write_post_mortem(kept.run_folder, step, record, kept.trainer)
    kept.trainer.guard.stop_if_exhausted(step, f"The last batch is in {kept.run_folder / POST_MORTEM}. ")


def _stop_if_asked(step: int, stop: StopRequest, kept: Checkpoints) -> None:
    """A signal came to some rank during the step: keep it, and end."""
    number = next((number for number in gather_objects(stop.number) if number is not None), None)
    if number is not None:
        if kept.every:
            kept.save(step)
        raise Stopped(number, f"step {step} is kept" if kept.every else f"step {step} is not kept")


def sample_rows(record: StepRecord, count: int) -> list[dict[str, object]]:
    """The first `count` completions of a step, each of another prompt, with their rewards."""
    rollout, rows = record.rollout, []
    firsts = (rollout.prompt_index_B.diff(prepend=rollout.prompt_index_B[:1] - 1) != 0).nonzero().flatten().tolist()
    for i in firsts[:count]:
        example = rollout.prompts.examples[int(rollout.prompt_index_B[i])]
        row: dict[str, object] = {
            "prompt": example.prompt,
            "completion": rollout.texts[i],
            "reference": example.reference,
            "source": rollout.source.value,
        }
        if record.scores is not None:
            row["reward"] = record.scores.total[i]
            row["rewards"] = {name: values[i] for name, values in record.scores.components.items()}
        rows.append(row)
    return rows
