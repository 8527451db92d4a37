"""Buffers of fixed length against caches that grow: the same tokens, in few shapes, with nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import MakeExamples, MakeModel, MakeStudent, codec_of
from test_decoder_only import KINDS as DECODER_ONLY_KINDS
from torch._dynamo.testing import CompileCounter
from transformers import PreTrainedTokenizerFast

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.rollout import GREEDY, Sampler, Sampling, TextCodec
from gkd_rl.static_decoding import StaticDecoding
from gkd_rl.types import PromptBatch, Rollout

DEEP: dict[str, Any] = {"num_layers": 2, "num_decoder_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    **DECODER_ONLY_KINDS,
    "t5": DEEP,
    "mt5": DEEP,
    "umt5": DEEP,
    "bart": {"encoder_layers": 2, "decoder_layers": 2},
    "mbart": {"encoder_layers": 2, "decoder_layers": 2},
}
ENCODER_DECODERS = ("t5", "mt5", "umt5", "bart", "mbart")
LONGEST = 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def static_of(codec: TextCodec, compiler: Callable[..., Any] | None = None) -> StaticDecoding:
    return StaticDecoding(codec.max_prompt_tokens, codec.max_completion_tokens, compiler)


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_a_cache_that_grows(
    kind: str, make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """Every admitted type, windows of attention too; the second rollout finds the buffers of the first."""
    name = kind.partition(",")[0]
    codec = codec_of("t5" if name in ENCODER_DECODERS else "llama", few_words, LONGEST)
    static, ended = static_of(codec), 0
    for seed in (1, 2):
        model = make_model(few_words, seed=seed, lively=True, model_type=name, **MODELS[kind])
        prompts = codec.prompts(make_examples(6, seed))
        for sampling in (GREEDY, Sampling(0.7, top_p=0.9)):
            plain, fixed = (
                Sampler(codec, sampling, how).sample(model, prompts, 3, seeded(seed)) for how in (None, static)
            )
            assert fixed.ids_BT.tolist() == plain.ids_BT.tolist()
            assert fixed.truncated_B.tolist() == plain.truncated_B.tolist()
            ended += int((~plain.truncated_B).sum())
    assert ended > 2


def rollout_of(
    model: HiddenStateModel, codec: TextCodec, prompts: PromptBatch, static: StaticDecoding | None = None, seed: int = 0
) -> Rollout:
    return Sampler(codec, Sampling(), static).sample(model, prompts, 4, seeded(seed))


@pytest.mark.parametrize("kind", ["t5 with LoRA", "llama with LoRA"])
def test_a_few_shapes_are_compiled_once_and_serve_every_later_rollout(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """Other prompts, weights that have moved, an adapter that is merged anew; in whole graphs, without a break."""
    codec, counter = codec_of(kind, few_words, LONGEST), CompileCounter()
    student = make_student(kind, few_words)
    static = static_of(codec, partial(torch.compile, backend=counter, fullgraph=True, dynamic=False))
    compiled = []
    for number in range(4):
        prompts = codec.prompts(make_examples(1, number))
        expected = rollout_of(student, codec, prompts, seed=number)
        found = rollout_of(student, codec, prompts, static, seed=number)
        assert found.ids_BT.tolist() == expected.ids_BT.tolist()
        student(found).sum().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        compiled.append(counter.frame_count)
    assert 1 < compiled[-1] <= 3  # four rows, two, one
