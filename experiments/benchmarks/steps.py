"""Whole optimiser steps, sampling included, ours beside trl's trainers, on models of one shape with random weights.

    python -m experiments.benchmarks.steps distillation          # alpha = 1, K = 1, beside DistillationTrainer
    python -m experiments.benchmarks.steps rl --per-prompt 4     # alpha = 0, beside GRPOTrainer
    python -m experiments.benchmarks.steps joint --per-prompt 4  # alpha = 0.5, beside one step of each of these
    python -m experiments.benchmarks.steps teacher --per-prompt 4 --teacher as_student  # alpha = 0.5 beside alpha = 0

The shapes are SmolLM2-135M's (the teacher has its 30 layers, the student every third of them) or others of `models.py`.
Prompts have 64 to 384 tokens; completions end by themselves or at 48: the end-of-sequence token has a probability of
about 2/48 at each position. Every side has the same prompts, learning rate, temperature and dtype, without gradient
checkpointing; trl processes all completions of a step as one batch. Speed is measured in valid completion tokens a
second, and in steps a second, which hardly depends on the random lengths of completions.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.gkd.gkd_config import GKDConfig
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from experiments.benchmarks import Side, Work, parser_of, step_rows, take_turns, write
from experiments.benchmarks.models import (
    BETA,
    LEARNING_RATE,
    models,
    our_step,
    our_trainer,
    random_texts,
    reward,
    vocabulary,
)
from gkd_rl.generation.codec import TextCodec
from gkd_rl.training.trainer import Trainer

TrlTrainer = Any  # GRPOTrainer, DistillationTrainer, GKDTrainer


class StepTimer(TrainerCallback):
    """Seconds of the last step of a transformers trainer, and the mean length of its completions."""

    def __init__(self) -> None:
        self.seconds = self.length = 0.0
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self._start

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Reads trl's mean length."""
        self.length = logs.get("completions/mean_length", self.length)


class Bench:
    """Models, prompts, and one step of each side."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        torch.manual_seed(arguments.seed)
        self.tokenizer, self.examples = random_texts(
            vocabulary(arguments.shape),
            arguments.prompts * 16,
            arguments.shortest,
            arguments.longest,
            arguments.seed,
        )
        self.student, self.teacher = models(arguments)
        if arguments.teacher == "as_student":
            self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def ours(self, alpha: float) -> Callable[[], Work]:
        """A step of our trainer."""
        return our_step(self.trainer(f"alpha={alpha}"))

    def trainer(self, *overrides: str) -> Trainer:
        """Our trainer with further settings."""
        arguments = self.arguments
        device = torch.device(arguments.device)
        codec = TextCodec(self.tokenizer, arguments.longest, arguments.completion, device, decoder_only=True)
        return our_trainer(arguments, (self.student, self.teacher), codec, self.examples, *overrides)

    def theirs(self, kind: str) -> Callable[[], Work]:
        """A step of trl's trainer: `train` with one step, timed from the step's beginning to its end."""
        trainer, timer = self.trl_trainer(kind), StepTimer()
        trainer.add_callback(timer)
        completions = self.arguments.prompts * self.arguments.per_prompt

        def run() -> Work:
            trainer.train()
            return Work(timer.length * completions, timer.seconds)

        return run

    def trl_trainer(self, kind: str) -> TrlTrainer:
        """GRPOTrainer ("rl"), DistillationTrainer ("distillation") or GKDTrainer ("gkd") on a copy of the student."""
        arguments = self.arguments
        shared: dict[str, Any] = {
            "output_dir": tempfile.mkdtemp(),
            "per_device_train_batch_size": arguments.prompts * arguments.per_prompt,
            "max_steps": 1,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "temperature": 1.0,
            "gradient_checkpointing": False,
            "bf16": False,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": torch.device(arguments.device).type == "cpu",
            "seed": arguments.seed,
        }
        student = copy.deepcopy(self.student)
        optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE)
        common: dict[str, Any] = {
            "model": student,
            "train_dataset": Dataset.from_list([{"prompt": one.prompt} for one in self.examples]),
            "processing_class": self.tokenizer,
            "optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        }
        score: Any = reward
        if kind == "rl":
            config = GRPOConfig(
                num_generations=arguments.per_prompt,
                beta=0.0,
                max_completion_length=arguments.completion,
                cache_implementation=arguments.trl_cache,
                **shared,
            )
            trainer: TrlTrainer = GRPOTrainer(args=config, reward_funcs=score, **common)
        elif kind == "gkd":
            settings = GKDConfig(beta=BETA, lmbda=0.0, max_new_tokens=arguments.completion, **shared)
            trainer = GKDTrainer(args=settings, teacher_model=self.teacher, **common)
        else:
            settings = DistillationConfig(beta=BETA, max_completion_length=arguments.completion, **shared)
            trainer = DistillationTrainer(args=settings, teacher_model=self.teacher, **common)
        trainer.remove_callback(PrinterCallback)
        return trainer


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Arguments of `Bench`, in addition to those of all benchmarks."""
    parser.add_argument("--shape", choices=["smollm2", "qwen2.5"], default="smollm2")
    parser.add_argument("--layers", type=int, help="of the teacher, instead of its own")
    parser.add_argument("--teacher", choices=["deep", "as_student"], default="deep", help="its layers")
    parser.add_argument("--teacher-bits", type=int, choices=[8, 4], help="of its matrices, through bitsandbytes")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--per-prompt", type=int, default=1, help="completions of each, K")
    parser.add_argument("--shortest", type=int, default=64, help="tokens of the shortest prompt")
    parser.add_argument("--longest", type=int, default=384, help="tokens of the longest prompt")
    parser.add_argument("--completion", type=int, default=48, help="tokens of the longest completion")
    parser.add_argument("--tokens", type=int, default=2048, help="at most, in one of our micro-batches")
    parser.add_argument("--trl-cache", help="cache_implementation of trl's GRPOTrainer, e.g. static")


def both(one: Callable[[], Work], other: Callable[[], Work]) -> Callable[[], Work]:
    """One step of each; the work is the mean of both."""

    def run() -> Work:
        first, second = one(), other()
        assert first.seconds is not None and second.seconds is not None
        return Work((first.amount + second.amount) / 2, first.seconds + second.seconds)

    return run


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=["distillation", "rl", "joint", "teacher"])
    add_sizes(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    if arguments.what == "distillation":
        sides = [
            Side("trl DistillationTrainer", bench.theirs("distillation")),
            Side("gkd_rl, alpha=1", bench.ours(1.0)),
        ]
    elif arguments.what == "rl":
        sides = [Side("trl GRPOTrainer", bench.theirs("rl")), Side("gkd_rl, alpha=0", bench.ours(0.0))]
    elif arguments.what == "teacher":
        sides = [Side("gkd_rl, alpha=0", bench.ours(0.0)), Side("gkd_rl, alpha=0.5", bench.ours(0.5))]
    else:
        theirs = both(bench.theirs("distillation"), bench.theirs("rl"))
        sides = [
            Side("trl DistillationTrainer, then GRPOTrainer", theirs),
            Side("gkd_rl, alpha=0.5", bench.ours(0.5)),
            Side("gkd_rl, alpha=0", bench.ours(0.0)),
        ]
    take_turns(sides, arguments.rounds)
    write(arguments, step_rows(sides, arguments.device))


if __name__ == "__main__":
    main()
