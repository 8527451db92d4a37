"""Our trainer on models of any shape with random weights, and texts of random words, for benchmarks."""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from experiments.benchmarks.shapes import Model
from experiments.benchmarks.sides import Work
from gkd_rl.architecture import HiddenStateModel
from gkd_rl.build import Models
from gkd_rl.build_trainer import build_trainer
from gkd_rl.config import Config
from gkd_rl.embedded.tokenizer import SPECIAL, word_tokenizer
from gkd_rl.prompt_stream import PromptStream
from gkd_rl.rollout import TextCodec
from gkd_rl.run import find_config_dir
from gkd_rl.trainer import Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

BETA = 0.9
LEARNING_RATE = 1e-5


def random_texts(
    vocabulary: int, count: int, shortest: int, longest: int, seed: int
) -> tuple[PreTrainedTokenizerFast, list[Example]]:
    """A tokenizer of single words, and prompts of random ones."""
    words = [f"w{i}" for i in range(vocabulary - len(SPECIAL))]
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, longest + 1, count)
    return word_tokenizer(words), [Example(" ".join(draw.choice(words, length)), "", {}) for length in lengths]


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Of the text alone, cheap."""
    return [sum(map(ord, text)) % 11 / 5 for text in completions]


def our_trainer(
    arguments: argparse.Namespace,
    models: tuple[PreTrainedModel, PreTrainedModel],
    codec: TextCodec,
    examples: list[Example],
    *overrides: str,
) -> Trainer:
    """A trainer as a run has it.

    Args:
        arguments: prompts of a step, completions of each, tokens of a micro-batch, seed, device; further settings.
        models: student, of which a copy is trained, and teacher.
        codec: text <-> ids.
        examples: prompts.
        overrides: further settings.
    """
    settings = [
        "experiment=rl_gkd", f"divergence.beta={BETA}", "divergence.scale=raw",
        f"rollout.per_prompt={arguments.per_prompt}", f"trainer.prompts_per_step={arguments.prompts}",
        "trainer.micro_batch_size=null", f"trainer.tokens_per_micro_batch={arguments.tokens}",
        "trainer.diagnose_every=0", f"trainer.learning_rate={LEARNING_RATE}", "trainer.steps=1000000",
        "trainer.warmup_steps=0", "trainer.weight_decay=0", *arguments.setting, *overrides,
    ]  # fmt: skip
    torch._dynamo.config.recompile_limit = 64  # of all trainers of the process, where something is compiled
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", settings))
    assert isinstance(config, Config)
    own: Model = copy.deepcopy(models[0])
    student = HiddenStateModel(own.to(arguments.device))
    initial = HiddenStateModel(student.model)  # nothing is measured against it here
    stream = PromptStream(examples, arguments.prompts, arguments.seed)
    score = Composite({"stub": reward}, {"stub": 1.0})
    accelerator = Accelerator(cpu=torch.device(arguments.device).type == "cpu")
    return build_trainer(
        config, Models(student, HiddenStateModel(models[1]), initial, codec), score, stream, accelerator
    )


def our_step(trainer: Trainer) -> Callable[[], Work]:
    """A step of the trainer, for the tokens that it trained on."""
    steps = itertools.count()

    def run() -> Work:
        metrics = trainer.step(next(steps)).metrics
        flops = sum(value for name, value in metrics.items() if name.startswith("flops/"))
        return Work(metrics["tokens/student_trained"], flops=flops)

    return run
