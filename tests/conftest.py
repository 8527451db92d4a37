"""What every room of the suite shares: models of some thousand weights, vocabularies of a few words, fixed rollouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from gkd_rl.architecture import DECODER_ONLY, HiddenStateModel
from gkd_rl.embedded.tokenizer import SPECIAL, build_tokenizer
from gkd_rl.loading import build_model
from gkd_rl.types import Example, PromptBatch, Rollout, Source

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)

ARCHITECTURE = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,  # so that a word of the past, and its distance, weigh as much as the last one
}

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
MakeModel = Callable[..., HiddenStateModel]
MakeExamples = Callable[..., list[Example]]
MakePrompts = Callable[..., PromptBatch]
MakeRollout = Callable[..., Rollout]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """`make_tokenizer("a b")`: the embedded tokenizer with other words; pad is 0, end 1, unknown 2, then the words."""

    def make(words: str) -> PreTrainedTokenizerFast:
        ids = {word: i for i, word in enumerate([*SPECIAL, *words.split()])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )

    return make


@pytest.fixture(scope="session")
def few_words(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    """A vocabulary of eight, so that random models end their sequences now and then."""
    return make_tokenizer("a b c d e")


@pytest.fixture(scope="session")
def news_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """`make_model(tokenizer, seed, **architecture)`: a fresh T5 of random weights; a Llama by `model_type="llama"`.

    `lively` gives it an output embedding of its own: one that is tied to the input embedding repeats its last word.
    """

    def make(
        tokenizer: PreTrainedTokenizerBase, seed: int = 0, *, lively: bool = False, **changes: object
    ) -> HiddenStateModel:
        base = LLAMA if changes.get("model_type") in DECODER_ONLY else ARCHITECTURE
        model = build_model({**base, **changes}, tokenizer, seed, torch.float32, "student")
        if lively:
            head: Any = model.get_output_embeddings()
            values = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
            head.weight = nn.Parameter(values)
        return HiddenStateModel(model)

    return make


@pytest.fixture(scope="session")
def make_examples() -> MakeExamples:
    """`make_examples(n, seed)`: prompts of one to six of the words a..e, and references of one to four."""

    def make(count: int, seed: int = 0) -> list[Example]:
        generator = torch.Generator().manual_seed(seed)

        def text(longest: int) -> str:
            length = int(torch.randint(1, longest + 1, (), generator=generator))
            return " ".join("abcde"[i] for i in torch.randint(0, 5, (length,), generator=generator).tolist())

        rows = [(f"{text(5)} a", text(4)) for _ in range(count)]
        return [Example(prompt, reference, {"document": prompt}) for prompt, reference in rows]

    return make


@pytest.fixture(scope="session")
def make_prompts() -> MakePrompts:
    """`make_prompts([[3, 4], [5]], extra=2)`: right-padded ids, every row ended by id 1, `extra` columns of padding."""

    def make(rows: Sequence[Sequence[int]], extra: int = 0) -> PromptBatch:
        width = max(len(row) for row in rows) + 1 + extra
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row) + 1] = torch.tensor([*row, 1])
            mask[i, : len(row) + 1] = True
        return PromptBatch([Example(str(row), "", {}) for row in rows], ids, mask)

    return make


@pytest.fixture(scope="session")
def make_rollout() -> MakeRollout:
    """`make_rollout(prompts, [[3, 1], [4]], per_prompt=1, extra=2)`: given completions, padded by `extra` columns."""

    def make(
        prompts: PromptBatch, completions: Sequence[Sequence[int]], per_prompt: int = 1, extra: int = 0
    ) -> Rollout:
        width = max(len(row) for row in completions) + extra
        ids = torch.zeros(len(completions), width, dtype=torch.long)
        mask = torch.zeros(len(completions), width, dtype=torch.bool)
        for i, row in enumerate(completions):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = True
        return Rollout(
            prompts=prompts,
            prompt_index_B=torch.arange(len(prompts.examples)).repeat_interleave(per_prompt),
            ids_BT=ids,
            mask_BT=mask,
            truncated_B=torch.tensor([1 not in row for row in completions]),
            texts=[" ".join(map(str, row)) for row in completions],
            source=Source.student,
        )

    return make
