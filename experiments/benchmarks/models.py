"""Models of random weights in the sizes of published ones, teacher and student, whose texts end by themselves.

smollm2   SmolLM2-135M's 30 layers teach every third of themselves
qwen2.5   Qwen2.5-1.5B teaches a 0.5B, 151,936 words
t5_small  T5-small's six layers teach three of themselves
t5_xl     T5 v1.1 XL teaches base

Our trainer on models of any shape with random weights, and texts of random words, for benchmarks.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.benchmarks.sides import Work
from gkd_rl.config import Config
from gkd_rl.config.choices import Quantization
from gkd_rl.data.embedded.tokenizer import SPECIAL as TOKENIZER_SPECIAL
from gkd_rl.data.embedded.tokenizer import word_tokenizer
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.configurations import KNOWN_CONFIGURATIONS, prune
from gkd_rl.models.placement import quantized
from gkd_rl.pipeline.build import Models
from gkd_rl.pipeline.build_trainer import build_trainer
from gkd_rl.run import find_config_dir
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

Model = Any  # transformers' classes hide the methods of torch's
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "decoder_start_token_id": 0}
SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 2048,
}
T5_SMALL: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_heads": 8,
}


@dataclass(frozen=True)
class Pair:
    """A teacher's shape and its student's.

    Attributes:
        teacher: of `AutoConfig`, with its model_type.
        student: None: the teacher's layers, each `every`-th.
        size: what one dimension of the embeddings is set to (`ending`).
        every: see `student`.
    """

    teacher: dict[str, Any]
    student: dict[str, Any] | None
    size: float
    every: int = 1


PAIRS = {
    "smollm2": Pair(SMOLLM2, None, size=20.0, every=3),
    "qwen2.5": Pair(
        KNOWN_CONFIGURATIONS["Qwen/Qwen2.5-1.5B-Instruct"],
        KNOWN_CONFIGURATIONS["Qwen/Qwen2.5-0.5B-Instruct"],
        size=20.0,
    ),
    "t5_small": Pair(T5_SMALL, None, size=200.0, every=2),
    "t5_xl": Pair(KNOWN_CONFIGURATIONS["google/flan-t5-xl"], KNOWN_CONFIGURATIONS["google/flan-t5-base"], size=200.0),
}


def vocabulary(name: str) -> int:
    """Words of both models."""
    return PAIRS[name].teacher["vocab_size"]


def models(arguments: argparse.Namespace) -> tuple[Model, Model]:
    """Student and frozen teacher on a device, whose texts end after half of --completion in the mean.

    Args:
        arguments: shape, layers (instead of the teacher's own number, and of a student's that is not made of them),
            completion, dtype, teacher_bits (of its matrices, or None) and device, where torch's random numbers decide
            the weights.
    """
    pair, layers, device = PAIRS[arguments.shape], arguments.layers, arguments.device
    teacher = _made(pair.teacher, layers, device, arguments.dtype)
    if pair.student is None:
        count = layers or pair.teacher.get("num_hidden_layers") or pair.teacher["num_layers"]
        student = prune(copy.deepcopy(teacher), list(range(0, count, pair.every)))
    else:
        student = _made(pair.student, layers, device, arguments.dtype)
    student, teacher = (ending(one, 2 / arguments.completion, pair.size) for one in (student, teacher))
    kind = {None: Quantization.none, 8: Quantization.int8, 4: Quantization.nf4}[arguments.teacher_bits]
    return student, quantized(teacher, kind, torch.device(device)).eval()


def _made(shape: dict[str, Any], layers: int | None, device: str, dtype: str) -> Model:
    shape = shape | SPECIAL | {"dropout_rate": 0.0}
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if layers is not None and key in shape:
            shape[key] = layers
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model: Model = kind.from_config(config, dtype=getattr(torch, dtype))
    if getattr(config, "scale_decoder_outputs", True) is False:  # T5 v1.1 has a head of its own
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach() * config.d_model**-0.5)
    return model


def ending(model: Model, chance: float, size: float) -> Model:
    """The model with a probability of some `chance` that a text ends, at every place.

    One dimension of all embeddings is `size`, so large that it stays nearly constant through the layers; along it, the
    end-of-sequence token's output is raised, everything else's stays level. The weight of the last norm there, which
    bfloat16 rounds least, says how much that is worth.
    """
    with torch.no_grad():
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        output[:, 0] = 0.0
        embedding[:, 0] = size  # which is the output's as well where both are one
        output[1, 0] += size / 8
        decoder, prompt = model.get_decoder(), {}
        if model.config.is_encoder_decoder:
            prompt["encoder_hidden_states"] = embedding.new_zeros(1, 1, embedding.shape[1])
        ids = torch.arange(3, 67, device=embedding.device).unsqueeze(0)
        hidden = float(decoder(input_ids=ids, **prompt).last_hidden_state[0, :, 0].mean())
        norm = decoder.final_layer_norm if model.config.is_encoder_decoder else decoder.norm
        scale = HiddenStateModel(model).head().scale  # T5's, where input and output embedding are one
        norm.weight[0] *= float(np.log(chance * len(output)) / (scale * hidden * size / 8))
    return model


BETA = 0.9
LEARNING_RATE = 1e-5


def random_texts(
    vocabulary: int, count: int, shortest: int, longest: int, seed: int
) -> tuple[PreTrainedTokenizerFast, list[Example]]:
    """A tokenizer of single words, and prompts of random ones."""
    words = [f"w{i}" for i in range(vocabulary - len(TOKENIZER_SPECIAL))]
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
