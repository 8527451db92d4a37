"""One run from start to table: supervised stages, evaluation before, training, evaluation after, output folder.

The paper's pipeline: teacher and student are first fine-tuned on the references (a checkpoint skips that), then the
student is trained on its own text. Supervised models are kept in a cache by the hash of all they depend on.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from gkd_rl import build
from gkd_rl.adapter import AdaptedModel, InitialView
from gkd_rl.architecture import HiddenStateModel
from gkd_rl.build_adapter import attach_adapter
from gkd_rl.build_evaluator import build_evaluator
from gkd_rl.build_plan import longest, plan_memory, with_micro_batches
from gkd_rl.build_teacher import audit_teacher, build_endpoint, check_teacher, has_weights, placed_teacher
from gkd_rl.build_trainer import build_supervised_trainer, build_trainer
from gkd_rl.checkpoint import save_model
from gkd_rl.choices import FixedSource
from gkd_rl.config import Config, ModelConfig
from gkd_rl.cost import CostTotals
from gkd_rl.data_report import data_facts
from gkd_rl.environment import environment_record
from gkd_rl.evaluation import Evaluation
from gkd_rl.json_files import write_json
from gkd_rl.launched import is_main_process
from gkd_rl.loading import model_class
from gkd_rl.memory_plan import GIB, plan_lines
from gkd_rl.outputs import Results, model_card_of, write_results
from gkd_rl.peak_memory import peak_bytes, reset_peak
from gkd_rl.prompt_stream import PromptStream
from gkd_rl.ranks import from_all, meet, own_seed, progress
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.tasks.task import Task
from gkd_rl.teacher_audit import TeacherAudit
from gkd_rl.teacher_samples import TeacherSamples, write_samples
from gkd_rl.tracking import Listing, Tracker, sweep_of
from gkd_rl.trainer import StepRecord, Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

log = logging.getLogger(__name__)


def run_experiment(config: Config, composed: DictConfig, output_dir: Path) -> float:
    """Train and evaluate as configured; the main process writes everything to `output_dir`.

    Returns:
        The objective after training, (1 - alpha) E[r] - alpha E[D], on evaluation samples: higher is better.
    """
    if config.scale.threads > 0:
        torch.set_num_threads(config.scale.threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge_score announces its tokenizer at every metric
    torch.manual_seed(own_seed(config.seed))
    log.info(config.scale.notice)
    task, reward = build.build_task(config), build.build_reward(config)
    if not is_main_process():
        return _run(config, task, reward, None, output_dir)

    output_dir.mkdir(parents=True, exist_ok=True)
    settings = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
    (output_dir / "config.yaml").write_text(OmegaConf.to_yaml(composed, resolve=True), encoding="utf-8")
    write_json(output_dir / "environment.json", environment_record())
    tracking = config.tracking
    group = tracking.group or sweep_of(output_dir) or config.name
    listing = Listing(tracking.project, group, config.name, tracking.job_type, tuple(tracking.tags))
    with Tracker(output_dir, tracking.wandb.value, listing, settings) as tracker:
        return _run(config, task, reward, tracker, output_dir)


def _run(config: Config, task: Task, reward: Composite | None, tracker: Tracker | None, output_dir: Path) -> float:
    """All stages, then the results, which the main process writes (it alone has a tracker); returns the objective."""
    accelerator = meet()
    check_teacher(config.teacher)
    train, held_out = task.examples("train"), task.examples(config.evaluation.split)
    prompts = train[: config.trainer.train_rows]
    reset_peak(accelerator.device)
    facts = _data_facts(config, task, {"train": train, config.evaluation.split: held_out}, accelerator)
    config = _sized(config, task, train, accelerator)
    cost = CostTotals()
    models = _prepare_models(config, task, train, accelerator)
    audit = _audit(config, models, train, held_out, accelerator)
    models = _write_samples(config, models, train, prompts, cost)
    stream = PromptStream(prompts, config.trainer.prompts_per_step, config.seed)
    evaluator = build_evaluator(config, models, reward, held_out)
    trainer = build_trainer(config, models, reward, stream, accelerator)

    evaluations: dict[str, Evaluation] = {}
    if models.teacher is not None:
        evaluations["teacher"] = evaluator.evaluate(models.teacher, "teacher")
    evaluations["student before"] = evaluator.evaluate(models.student, "student before")
    _train(trainer, config, tracker, cost)
    evaluations["student after"] = evaluator.evaluate(models.student, "student after")

    references, prompts = [example.reference for example in held_out], [example.prompt for example in held_out]
    memory: dict[str, str | int] = {"device": accelerator.device.type, "peak_bytes": peak_bytes(accelerator.device)}
    log.info("peak memory: %.2f GiB (%s)", peak_bytes(accelerator.device) / GIB, accelerator.device)
    results = Results(
        evaluations, references, config.evaluation.bootstrap_samples, cost.as_dict(), memory, facts, audit, prompts
    )
    if tracker is None:
        return results.objective(config.alpha)
    tracker.summary({"cost": results.cost, **results.as_dict()})
    table = write_results(output_dir, results, config)
    if config.save_model:
        card = model_card_of(results, config, model_class(models.student.model.config))
        head = None if models.critic is None else models.critic.head
        student = models.student if isinstance(models.student, AdaptedModel) else models.student.model
        save_model(output_dir / "model", student, models.codec.tokenizer, card, head)
    print(f"{table}\nRun folder: {output_dir}")  # noqa: T201
    return results.objective(config.alpha)


def _data_facts(
    config: Config, task: Task, splits: dict[str, list[Example]], accelerator: Accelerator
) -> dict[str, Any]:
    """What became of the rows and their texts."""
    settings = config.teacher
    codec, _ = build.build_codecs(config, settings if has_weights(settings) else None, task, accelerator.device)
    return data_facts(task, codec, splits)


def _sized(config: Config, task: Task, train: list[Example], accelerator: Accelerator) -> Config:
    """Micro-batches that are left open become the most that fit in memory."""
    settings = config.teacher
    stages = (config.trainer, config.student.sft, None if settings is None else settings.sft)
    if all(stage is None or stage.micro_batch_size or stage.tokens_per_micro_batch for stage in stages):
        return config
    codec, _ = build.build_codecs(config, settings if has_weights(settings) else None, task, accelerator.device)
    plan = plan_memory(config, longest(config, codec, train), accelerator.device, codec.tokenizer)
    log.info("memory plan:\n%s", "\n".join(plan_lines(plan)))
    if plan.peak > plan.available:
        log.warning(
            "the plan's peak is %.2f GiB of %.2f GiB that there are: python -m gkd_rl.doctor says what to change",
            plan.peak / GIB,
            plan.available / GIB,
        )
    return with_micro_batches(config, plan)


def _prepare_models(config: Config, task: Task, train: list[Example], accelerator: Accelerator) -> build.Models:
    """Teacher and student, each loaded, reused from the cache, or trained on the references."""
    settings = config.teacher
    own_teacher = has_weights(settings)
    codec, own = build.build_codecs(config, settings if own_teacher else None, task, accelerator.device)
    teacher, endpoint = None, None
    if settings is not None and settings.endpoint is not None:
        endpoint = build_endpoint(settings.endpoint, codec, train[0])
    elif settings is not None and own_teacher:
        full = _prepare_model(config, settings, "teacher", own or codec, train, accelerator)
        full.codec = own
        teacher = placed_teacher(full, settings, accelerator.device)
    student = _prepare_model(config, config.student, "student", codec, train, accelerator).to(accelerator.device)
    if config.adapter is None:
        initial = copy.deepcopy(student).requires_grad_(False).eval()
    else:
        student = attach_adapter(config, student.model)
        initial = InitialView(student)
    return build.Models(student, teacher, initial, codec, build.build_critic(config, student), endpoint=endpoint)


def _audit(
    config: Config, models: build.Models, train: list[Example], held_out: list[Example], accelerator: Accelerator
) -> TeacherAudit | None:
    """What quantising the teacher cost, on rollouts of held-out prompts."""
    settings = config.teacher

    def load() -> HiddenStateModel:
        assert settings is not None and models.teacher is not None
        own = models.teacher.codec
        codec = own if isinstance(own, TextCodec) else models.codec
        full = _prepare_model(config, settings, "teacher", codec, train, accelerator)
        full.codec = own
        return full

    audit = audit_teacher(config, models, held_out, load)
    if audit is not None:
        log.info("teacher audit: %s", audit)
    return audit


def _write_samples(
    config: Config, models: build.Models, train: list[Example], prompts: list[Example], cost: CostTotals
) -> build.Models:
    """The teacher's completion of every prompt of the run's own stage, where that has steps on them."""
    reads = config.fixed_data.source is FixedSource.teacher and config.lmbda < 1
    if not reads or models.teacher is None or config.teacher is None:
        return models
    own = models.teacher.codec
    key = build.model_key(config.teacher, own if isinstance(own, TextCodec) else models.codec, train)
    folder = build.samples_cache(config, key, models.codec, prompts)
    sampler = Sampler(models.codec, Sampling(config.fixed_data.temperature))
    start = time.perf_counter()
    with progress(len(prompts), "teacher: samples", "row") as bar:

        def after_chunk(done: int) -> None:
            bar.update(done - bar.n)

        seed = config.fixed_data.seed
        ids = write_samples(folder, models.teacher, sampler, prompts, seed, after_chunk=after_chunk)
    cost.add({"time/teacher_samples": time.perf_counter() - start})
    log.info("teacher: samples in %s", folder)
    return replace(models, samples=TeacherSamples(models.teacher, ids))


def _prepare_model(
    config: Config, settings: ModelConfig, key: str, codec: TextCodec, train: list[Example], accelerator: Accelerator
) -> HiddenStateModel:
    """One model after its supervised stage, on the CPU or where it was trained.

    A student with an adapter trains one in that stage, which is merged at its end.
    """
    adapter = config.adapter if key == "student" else None
    if settings.sft is None:
        return HiddenStateModel(build.fresh_model(settings, codec.tokenizer, key))
    folder = build.supervised_cache(config, build.model_key(settings, codec, train, adapter))
    if all(from_all(folder.is_dir())):
        log.info("%s: reused the supervised model %s", key, folder)
        stored = build.load_model(str(folder), None, getattr(torch, settings.dtype.value), f"{key} (cached)")
        return HiddenStateModel(stored)
    model = HiddenStateModel(build.fresh_model(settings, codec.tokenizer, key)).to(accelerator.device)
    if adapter is not None:
        model = attach_adapter(config, model.model)
    trainer = build_supervised_trainer(model, settings, codec, train, accelerator)
    with progress(settings.sft.steps, f"{key}: supervised", "step") as bar:

        def after_step(_: int, record: StepRecord) -> None:
            bar.set_postfix(loss=f"{record.metrics['loss']:.3f}", refresh=False)
            bar.update()

        trainer.run(settings.sft.steps, after_step)
    if isinstance(model, AdaptedModel):
        model = HiddenStateModel(model.merge())
    if accelerator.is_main_process:
        save_model(folder, model.model, codec.tokenizer, f"Supervised {key} of gkd_rl, {settings.sft.steps} steps.\n")
    accelerator.free_memory()  # it would keep the wrapper of this stage
    accelerator.wait_for_everyone()
    log.info("%s: kept the supervised model in %s", key, folder)
    return model


def _train(trainer: Trainer, config: Config, tracker: Tracker | None, cost: CostTotals) -> None:
    """The run's own stage, with one line of metrics a step and samples at every log step."""
    settings = config.trainer
    with progress(settings.steps, f"student: alpha={config.alpha:g}", "step") as bar:

        def after_step(step: int, record: StepRecord) -> None:
            cost.add(record.metrics)
            if tracker is None:
                return
            tracker.log_step(step, record.metrics)
            if step % settings.log_every == 0 or step == settings.steps:
                tracker.log_samples(step, sample_rows(record, settings.samples_per_log))
            shown = {name: record.metrics[name] for name in ("divergence", "reward/mean") if name in record.metrics}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
            bar.update()

        trainer.run(settings.steps, after_step)


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
