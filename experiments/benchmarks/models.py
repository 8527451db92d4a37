"""Teachers and students of random weights in published sizes, and our trainer on them.

smollm2   SmolLM2-135M with its 30 layers as the teacher, every third of them as the student
qwen2.5   Qwen2.5-1.5B as the teacher of a 0.5B, 151,936 tokens
t5_small  T5-small with its six layers as the teacher, three of them as the student
t5_xl     T5 v1.1 XL as the teacher of base

Completions end by themselves (`ending`): the end-of-sequence token has about the same probability at each position.
Prompts are random tokens.
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
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.benchmarks import Work
from experiments.study.plan import composed
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
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

Model = Any  # the types of transformers' models hide the methods of torch's
BETA = 0.9
LEARNING_RATE = 1e-5
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
    """Configurations of a teacher and its student.

    Attributes:
        teacher: values for `AutoConfig`, with model_type.
        student: likewise; None: every `every`-th layer of the teacher.
        size: value of the first dimension of the embeddings (`ending`).
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
    """Number of tokens of both models."""
    return PAIRS[name].teacher["vocab_size"]


def models(arguments: argparse.Namespace) -> tuple[Model, Model]:
    """Student and frozen teacher on a device, whose completions end after half of --completion on average.

    Args:
        arguments: shape; layers (of the teacher, and of a student with a configuration of its own; None: as
            published); completion; dtype; teacher_bits (8, 4 or None); device, whose random state gives the weights.
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
    if getattr(config, "scale_decoder_outputs", True) is False:  # T5 v1.1: an output embedding of its own
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach() * config.d_model**-0.5)
    return model


def ending(model: Model, chance: float, size: float) -> Model:
    """The model with a probability of about `chance` of the end-of-sequence token at every position.

    One dimension of all embeddings is set to `size`, so large that it stays nearly constant through the layers. In that
    dimension the output embedding of the end-of-sequence token is raised by `size` / 8, the others are zero. The weight
    of the last norm there, which bfloat16 rounds least, scales the resulting logit.
    """
    with torch.no_grad():
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        output[:, 0] = 0.0
        embedding[:, 0] = size  # also of the output embedding if both are tied
        output[1, 0] += size / 8
        decoder, prompt = model.get_decoder(), {}
        if model.config.is_encoder_decoder:
            prompt["encoder_hidden_states"] = embedding.new_zeros(1, 1, embedding.shape[1])
        ids = torch.arange(3, 67, device=embedding.device).unsqueeze(0)
        hidden = float(decoder(input_ids=ids, **prompt).last_hidden_state[0, :, 0].mean())
        norm = decoder.final_layer_norm if model.config.is_encoder_decoder else decoder.norm
        scale = HiddenStateModel(model).head().scale  # of T5, if the embeddings are tied
        norm.weight[0] *= float(np.log(chance * len(output)) / (scale * hidden * size / 8))
    return model


def random_texts(
    vocabulary: int, count: int, shortest: int, longest: int, seed: int
) -> tuple[PreTrainedTokenizerFast, list[Example]]:
    """A tokenizer of single words, and prompts of random words."""
    words = [f"w{i}" for i in range(vocabulary - len(TOKENIZER_SPECIAL))]
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, longest + 1, count)
    return word_tokenizer(words), [Example(" ".join(draw.choice(words, length)), "", {}) for length in lengths]


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """A cheap function of the text."""
    return [sum(map(ord, text)) % 11 / 5 for text in completions]


def our_trainer(
    arguments: argparse.Namespace,
    models: tuple[PreTrainedModel, PreTrainedModel],
    codec: TextCodec,
    examples: list[Example],
    *overrides: str,
) -> Trainer:
    """The trainer of a run.

    Args:
        arguments: prompts a step, completions of each, tokens of a micro-batch, seed, device; further settings.
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
    torch._dynamo.config.recompile_limit = 64  # for all trainers of the process together
    config = composed(tuple(settings))
    own: Model = copy.deepcopy(models[0])
    student = HiddenStateModel(own.to(arguments.device))
    initial = HiddenStateModel(student.model)  # not used here: no KL to it is measured
    stream = PromptStream(examples, arguments.prompts, arguments.seed)
    score = Composite({"stub": reward}, {"stub": 1.0})
    accelerator = Accelerator(cpu=torch.device(arguments.device).type == "cpu")
    return build_trainer(
        config, Models(student, HiddenStateModel(models[1]), initial, codec), score, stream, accelerator
    )


def our_step(trainer: Trainer) -> Callable[[], Work]:
    """A step of the trainer; its work are the tokens that it trained on."""
    steps = itertools.count()

    def run() -> Work:
        metrics = trainer.step(next(steps)).metrics
        flops = sum(value for name, value in metrics.items() if name.startswith("flops/"))
        return Work(metrics["tokens/student_trained"], flops=flops)

    return run
