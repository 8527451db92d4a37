"""The memory plan of a run before its weights are loaded, and the advice that it gives where memory has run out.

The planner follows the run's stages with models of shapes alone (`planning/model_memory.py` has the arithmetic of one
model): what each stage holds throughout, what each phase adds, and the largest micro-batch that fits.
"""

from __future__ import annotations

import copy
import functools
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from gkd_rl.config import Config, ModelConfig, OptimizerConfig, SftConfig
from gkd_rl.config.choices import DivergenceName, Quantization
from gkd_rl.config.rules import alpha_schedule
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.data.task import Task
from gkd_rl.errors import ConfigError, MemoryShortage, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.static_decoding import StaticDecoding
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import Checkpoint, read_config
from gkd_rl.models.configurations import check_layers, known_config
from gkd_rl.models.loading import empty_model, load_checkpoint
from gkd_rl.pipeline.build import (
    ResolvedModels,
    attach_adapter,
    has_weights,
    place_of,
    resolve_models,
    token_divergence,
)
from gkd_rl.planning.memory_plan import GIB, Lengths, MemoryPlan, StagePlan
from gkd_rl.planning.model_memory import (
    Update,
    generation_bytes,
    largest_matrix_bytes,
    largest_micro_batch,
    optimizer_bytes,
    optimizer_step_bytes,
    reading_bytes,
    static_bytes,
    trained_bytes,
    training_bytes,
    weight_bytes,
    without_data,
)
from gkd_rl.types import Example

ROWS = 2048  # prompts that are looked at for the longest
ROOM = 0.92  # of the memory that there is; allocators round up and leave holes
HOLES = 0.25  # of glibc's malloc, measured: resident memory of a step over its live tensors
Stage = TypeVar("Stage", OptimizerConfig, SftConfig | None)
CGROUP = Path("/sys/fs/cgroup/memory.max")


def longest(config: Config, codec: TextCodec, train: list[Example]) -> Lengths:
    """The longest prompt of the run's first steps, and the limit of completions."""
    stream = PromptStream(train[: config.trainer.train_rows], config.trainer.prompts_per_step, config.seed)
    steps = min(config.trainer.steps, max(1, ROWS // config.trainer.prompts_per_step))
    rows = sorted({row for step in range(steps) for row in stream.rows(step)})
    widths = [
        int(codec.prompts([train[row] for row in rows[start : start + 256]]).mask_PS.sum(dim=1).max())
        for start in range(0, len(rows), 256)
    ]
    return Lengths(max(widths), codec.max_completion_tokens)


def available_bytes(config: Config, device: torch.device) -> int:
    """Bytes that a run may take: as configured, of the GPU, or of this machine and its container."""
    if config.scale.memory_gib is not None:
        return int(config.scale.memory_gib * GIB)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit = CGROUP.read_text(encoding="ascii").strip() if CGROUP.is_file() else "max"
    memory = psutil.virtual_memory()
    here = memory.available + psutil.Process().memory_info().rss
    return here if limit == "max" else min(here, int(limit))


def plan_memory(config: Config, lengths: Lengths, device: torch.device, resolved: ResolvedModels | None) -> MemoryPlan:
    """The plan of a run's stages.

    Args:
        config: of the run.
        lengths: of its longest text.
        device: where student and teacher will be.
        resolved: its models; None where their files cannot be reached: then from known configurations.

    Raises:
        ModelError: there is no configuration, or layers or adapter do not fit it.
    """
    with torch.device("meta"):
        student = HiddenStateModel(_empty(config.student, "student", None if resolved is None else resolved.student))
        if config.adapter is not None:
            student = attach_adapter(config, student.model, place_of(config.student, "student"))
        settings, teacher = config.teacher, None
        if settings is not None and has_weights(settings):
            teacher = HiddenStateModel(_empty(settings, "teacher", None if resolved is None else resolved.teacher))
    available = available_bytes(config, device)
    process = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    with FakeTensorMode():
        teacher = None if teacher is None else without_data(teacher)
        planner = _Planner(config, lengths, device, without_data(student), teacher, int(ROOM * available) - process)
        stages = tuple(planner.stages())
    holes = HOLES if device.type == "cpu" else 0.0
    return MemoryPlan(device.type, available, process, holes, stages, planner.chosen, planner.tokens)


def with_micro_batches(config: Config, plan: MemoryPlan) -> Config:
    """The configuration with the micro-batches that the plan chose where they were left to it."""
    student, teacher = config.student, config.teacher

    def sized(stage: Stage, key: str) -> Stage:
        tokens = plan.tokens_per_micro_batch.get(key)
        return stage if stage is None or tokens is None else replace(stage, tokens_per_micro_batch=tokens)

    return replace(
        config,
        student=replace(student, sft=sized(student.sft, "student.sft")),
        teacher=None if teacher is None else replace(teacher, sft=sized(teacher.sft, "teacher.sft")),
        trainer=sized(config.trainer, "trainer"),
    )


def _empty(model: ModelConfig, key: str, checkpoint: Checkpoint | None) -> PreTrainedModel:
    """The model's shapes, on the meta device."""
    if checkpoint is not None and checkpoint.place is None:
        return load_checkpoint(checkpoint)
    config = _known(model, key) if checkpoint is None else copy.deepcopy(checkpoint.configuration)
    if model.keep_layers is not None:
        check_layers(config, model.keep_layers, f"{key}.keep_layers")
    return empty_model(config, getattr(torch, model.dtype.value), model.keep_layers)


def _known(model: ModelConfig, key: str) -> PreTrainedConfig:
    """The configuration of a model whose tokenizer cannot be reached: its own, or that of a known checkpoint."""
    place = place_of(model, key)
    if place is None:
        raise ConfigError([f"{key}.path=null: {key}.architecture and a tokenizer are needed to plan its memory."])
    try:
        return read_config(place)
    except ModelError:
        config = known_config(model.path)
        if config is None:
            raise
        return config


@dataclass
class _Planner:
    """The models of a run without data, and the bytes that are free for its stages."""

    config: Config
    lengths: Lengths
    device: torch.device
    student: HiddenStateModel
    teacher: HiddenStateModel | None
    free: int

    def __post_init__(self) -> None:
        self.chosen: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        adapted, teacher = isinstance(self.student, AdaptedModel), self.config.teacher
        self.quantization = Quantization.none if teacher is None else teacher.quantization
        weights = weight_bytes(self.student)
        beside = {"adapter": trained_bytes(self.student)} if adapted else {"initial student": weights}
        self.student_held = {"student": weights, **beside}
        self.teacher_held: dict[str, int] = {}
        if self.teacher is not None and not self._elsewhere():
            name = "teacher" if self.quantization is Quantization.none else f"teacher in {self.quantization.value}"
            self.teacher_held[name] = weight_bytes(self.teacher, self.quantization)

    def stages(self) -> list[StagePlan]:
        """What happens one after the other."""
        config, found = self.config, []
        if config.teacher is not None and config.teacher.sft is not None and self.teacher is not None:
            held = {"teacher": weight_bytes(self.teacher)}
            found.append(self._supervised("teacher.sft", self.teacher, config.teacher.sft, held))
        elif self.teacher is not None and self.device.type == "cpu":
            found.append(StagePlan("teacher: loading", {"teacher": weight_bytes(self.teacher)}, {}))
        if config.student.sft is not None:
            held = self.teacher_held | {name: size for name, size in self.student_held.items() if "initial" not in name}
            found.append(self._supervised("student.sft", self.student, config.student.sft, held))
        if self.teacher_held and self.quantization is not Quantization.none and self._audited():
            found.append(self._audit())
        return [*found, *self._own_stage()]

    def _supervised(self, key: str, model: HiddenStateModel, stage: SftConfig, held: dict[str, int]) -> StagePlan:
        """Maximum likelihood on references."""
        head = FusedHead(TokenDivergence(DivergenceName.cross_entropy), chunk_tokens=stage.head_chunk_tokens)
        update = Update(head, stage.gradient_checkpointing, 1)
        held = held | self._learning(model, stage)
        parts = self._update(key, stage, model, None, stage.batch_size, update, held)
        return StagePlan(key.replace(".sft", ": supervised"), held, {"update": parts, **self._step(model, stage)})

    def _audit(self) -> StagePlan:
        """The teacher at full precision beside the quantised one."""
        assert self.teacher is not None
        size, chunk = self.config.evaluation.batch_size, self.config.trainer.head_chunk_tokens
        parts = {"teacher at full precision": weight_bytes(self.teacher)}
        head = FusedHead(TokenDivergence(DivergenceName.forward_kl), chunk_tokens=chunk)
        parts["reading"] = reading_bytes(self.teacher, self.lengths, size, 1, head, self.teacher)
        return StagePlan("teacher audit", self.student_held | self.teacher_held, {"audit": parts})

    def _own_stage(self) -> list[StagePlan]:
        """Training on rollouts, and the evaluations around it."""
        config, trainer, per_prompt = self.config, self.config.trainer, self.config.rollout.per_prompt
        alpha, sequences = alpha_schedule(config), trainer.prompts_per_step * config.rollout.per_prompt
        divergence = token_divergence(config.divergence) if alpha.has_divergence else None
        head = FusedHead(divergence, config.rollout.temperature, trainer.head_chunk_tokens)
        held = self.student_held | self.teacher_held | self._learning(self.student, trainer)
        if alpha.has_divergence and alpha.has_reward and trainer.diagnose_every > 0:
            held["both terms' gradients"] = 2 * trained_bytes(self.student)
        if config.rollout.static_cache:
            static = StaticDecoding(*(config.task[f"max_{text}_tokens"] for text in ("prompt", "completion")))
            held["static cache"] = static_bytes(self.student, static, trainer.prompts_per_step, per_prompt)
        imitated = config.teacher is not None and config.teacher.initial_student
        read = self.student if imitated else self.teacher
        read = read if divergence is not None and divergence.needs_teacher else None
        if divergence is not None and divergence.needs_teacher and read is None:  # behind a server
            read = self.student
        apart = trainer.diagnose_every > 0 or alpha.balanced
        update = Update(head, trainer.gradient_checkpointing, per_prompt, apart)
        parts = self._update("trainer", trainer, self.student, read, sequences, update, held)
        phases = {"rollout": generation_bytes(self.student, self.lengths, sequences, per_prompt)}
        if read is not None:
            phases["teacher"] = self._reading(read, self.chosen["trainer"], per_prompt)
        phases |= {"update": parts, **self._step(self.student, trainer)}
        return [StagePlan("training", held, phases), StagePlan("evaluation", held, self._evaluation(divergence))]

    def _evaluation(self, divergence: TokenDivergence | None) -> dict[str, dict[str, int]]:
        """Decoding and comparing, a batch at a time."""
        settings, chunk = self.config.evaluation, self.config.trainer.head_chunk_tokens
        samples = settings.self_bleu_samples if settings.self_bleu_prompts > 0 else 1
        size, other = settings.batch_size, self.teacher or self.student
        writers = {"student": self.student} | ({} if self.teacher is None else {"teacher": self.teacher})
        phases = {
            f"{name} generates": generation_bytes(model, self.lengths, size * samples, samples)
            for name, model in writers.items()
        }
        head = FusedHead(divergence or TokenDivergence(DivergenceName.reverse_kl), chunk_tokens=chunk)
        reading = reading_bytes(self.student, self.lengths, size, 1, head, other)
        return phases | {"comparing": self._reading(other, size, 1) | {"states and head chunks": reading}}

    def _reading(self, model: HiddenStateModel, sequences: int, per_prompt: int) -> dict[str, int]:
        """A forward pass without gradient; a quantised matrix is spread out while it is used."""
        parts = {"activations": reading_bytes(model, self.lengths, sequences, per_prompt)}
        if model is self.teacher and self.quantization is not Quantization.none:
            parts["matrix at full precision"] = largest_matrix_bytes(model)
        return parts

    def _update(
        self,
        key: str,
        stage: OptimizerConfig,
        model: HiddenStateModel,
        teacher: HiddenStateModel | None,
        sequences: int,
        update: Update,
        held: dict[str, int],
    ) -> dict[str, int]:
        """One micro-batch, of the configured size or of the most that fit."""

        def parts_of(size: int) -> dict[str, int]:
            return training_bytes(model, teacher, self.lengths, size, update)

        free, size = self.free - sum(held.values()), stage.micro_batch_size
        free = int(free / (1 + HOLES)) if self.device.type == "cpu" else free
        if size is None and stage.tokens_per_micro_batch is not None:
            size = self.lengths.completions_in(stage.tokens_per_micro_batch, update.per_prompt, sequences)
        if size is None:
            size = largest_micro_batch(lambda some: sum(parts_of(some).values()), free, sequences)
            self.tokens[key] = self.lengths.tokens(size, update.per_prompt)
        self.chosen[key] = size
        return parts_of(min(size, sequences))

    def _learning(self, model: HiddenStateModel, stage: OptimizerConfig) -> dict[str, int]:
        return {"gradients": trained_bytes(model), "optimiser": optimizer_bytes(model, stage.optimizer)}

    def _step(self, model: HiddenStateModel, stage: OptimizerConfig) -> dict[str, dict[str, int]]:
        size = optimizer_step_bytes(model, stage.optimizer, fused=self.device.type == "cuda")
        return {"optimiser's step": {"copies": size}}

    def _audited(self) -> bool:
        return self.config.teacher is not None and self.config.teacher.audit_prompts > 0

    def _elsewhere(self) -> bool:
        """The teacher's weights lie in other memory than the student's."""
        teacher = self.config.teacher
        assert teacher is not None
        here, there = (torch.device(one) for one in (self.device, teacher.device or self.device))
        other = (here.type, here.index or 0) != (there.type, there.index or 0)
        return other or (teacher.offload and self.device.type != "cpu")


P = ParamSpec("P")
T = TypeVar("T")
CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an error reports that no memory is left; PyTorch's allocator on the CPU has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in CPU_ALLOCATOR)


def explaining_memory_shortage(run: Callable[P, T]) -> Callable[P, T]:
    """A run whose lack of memory ends as one message.

    Args:
        run: takes the configuration and the task first.
    """

    @functools.wraps(run)
    def named(*arguments: P.args, **others: P.kwargs) -> T:
        try:
            return run(*arguments, **others)
        except Exception as error:
            if not is_shortage(error):
                raise
            reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            traceback.clear_frames(error.__traceback__)  # they hold the run's tensors
        gc.collect()
        torch.cuda.empty_cache()
        raise MemoryShortage(f"out of memory ({reason}). {_advice(*arguments[:2])}")

    return named


def _advice(config: Any, task: Any) -> str:
    """Advice from the plan, where there is memory enough to make one."""
    doctor = "python -m gkd_rl.doctor with the same settings shows the memory of every stage."
    try:
        plan = _plan(config, task)
    except Exception as error:
        if not is_shortage(error):
            raise
        return f"There is not enough left to find out what took it; {doctor}"
    return (
        f"The plan's peak is {plan.peak / GIB:.2f} GiB of {plan.available / GIB:.2f} GiB ({plan.device}), in "
        f"{plan.largest.name}; {plan.advice()}. {doctor}"
    )


def _plan(config: Config, task: Task) -> MemoryPlan:
    device = Accelerator().device
    resolved = resolve_models(config, task, device)
    return plan_memory(config, longest(config, resolved.codec, task.examples("train")), device, resolved)
