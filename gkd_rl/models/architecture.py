"""What differs between model architectures, and nothing else: how prompts and completions become hidden states.

`EncoderDecoder` serves T5-style models: the encoder runs once per prompt, whatever the number of completions.
`DecoderOnly` serves Llama-like models: prompt and completions stand in one row. How rows are laid out:
`models/row_layout.py`. A further architecture implements the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_rl.errors import ModelError
from gkd_rl.models.decoding import (
    DecoderOnlyState,
    DecodingState,
    EncoderDecoderState,
    decoder_of,
    encoder_of,
    start_id,
)
from gkd_rl.models.row_layout import Rows, StackCost, can_share, length_batches, shares_prompts
from gkd_rl.types import Example, OutputHead, PromptBatch, Rollout

# Model types whose log-probabilities equal transformers' own and whose greedy decoding equals its generate, by test.
ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "bart", "mbart")
DECODER_ONLY = (
    *("llama", "smollm3", "qwen2", "qwen3", "mistral", "ministral", "phi3", "gemma", "gemma2", "gemma3_text"),
    *("granite", "cohere", "cohere2", "olmo2", "olmo3"),
)


class Architecture(Protocol):
    """The contract that student, teacher, sampler and trainer rely on.

    Attributes:
        decoder_only: how texts become ids, see `TextCodec`.
    """

    decoder_only: bool

    def lay_out(self, model: PreTrainedModel, rollout: Rollout) -> Any:
        """The text in the form that `read` takes; depends on its values and on no weights."""
        ...

    def read(self, model: PreTrainedModel, text: Any) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        ...

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """How the model's hidden states become logits."""
        ...

    def prompt_batches(self, model: PreTrainedModel, prompts: PromptBatch) -> list[list[int]]:
        """Prompts in groups of similar length, by the cost of their forward pass."""
        ...

    def start(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> DecodingState:
        """Read the prompts once, a group at a time, and open `per_prompt` empty completions of each."""
        ...


@dataclass(frozen=True)
class EncodedText:
    """The inputs of an encoder-decoder.

    Attributes:
        prompts: for the encoder.
        rows: for the decoder.
        prompt_R: each row's prompt.
    """

    prompts: PromptBatch
    rows: Rows
    prompt_R: Tensor


class EncoderDecoder:
    """T5, T5 v1.1, Flan-T5 and models with the same encoder and decoder modules."""

    decoder_only = False

    def __init__(self, encoder: StackCost, decoder: StackCost) -> None:
        self._encoder, self._cost = encoder, decoder

    def lay_out(self, model: PreTrainedModel, rollout: Rollout) -> EncodedText:
        """Completions of a prompt in one row of the decoder or apart, whichever costs less (`models/row_layout.py`)."""
        shared = self.shares_prompts(model, rollout)
        index_P = torch.arange(len(rollout.prompts.ids_PS), device=rollout.ids_BT.device)
        rows = Rows.for_decoding(rollout, start_id(model), shared=shared)
        return EncodedText(rollout.prompts, rows, index_P if shared else rollout.prompt_index_B)

    def read(self, model: PreTrainedModel, text: EncodedText) -> Tensor:
        """Encoder once per prompt, decoder over all completions with teacher forcing; shape (B, T, D)."""
        prompts, rows = text.prompts, text.rows
        mask_PS = prompts.mask_PS.long()
        encoded_PSD = encoder_of(model)(input_ids=prompts.ids_PS, attention_mask=mask_PS).last_hidden_state
        decoded = decoder_of(model)(
            input_ids=rows.ids_RW,
            attention_mask=rows.masks(model) if rows.shared else None,
            encoder_hidden_states=encoded_PSD[text.prompt_R],
            encoder_attention_mask=mask_PS[text.prompt_R],
            use_cache=False,
        )
        return decoded.last_hidden_state[rows.row_B.unsqueeze(1), rows.columns_BT]

    def shares_prompts(self, model: PreTrainedModel, rollout: Rollout) -> bool:
        """Whether completions of one prompt stand in one row of the decoder."""
        return can_share(model) and shares_prompts(self._cost, rollout)

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """The language-model head; T5 v1.0 scales its hidden state by d_model^-0.5 before the tied embedding."""
        scaled = getattr(model.config, "scale_decoder_outputs", False)
        head: Any = model.get_output_embeddings()
        bias = getattr(model, "final_logits_bias", None)
        return OutputHead(
            weight_VD=head.weight,
            bias_V=None if bias is None else bias.flatten(),
            scale=model.config.d_model**-0.5 if scaled else 1.0,
        )

    def prompt_batches(self, model: PreTrainedModel, prompts: PromptBatch) -> list[list[int]]:
        """Prompts in groups of like length, the cheapest to encode."""
        return length_batches(_lengths(prompts), self._encoder, model.device.type)

    def start(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> EncoderDecoderState:
        """Encode each prompt once and repeat the result for its completions."""
        return EncoderDecoderState(model, prompts, per_prompt, groups)


class DecoderOnly:
    """Llama and models with the same modules. Every prompt has at least one token."""

    decoder_only = True

    def __init__(self, cost: StackCost) -> None:
        self._cost = cost

    def lay_out(self, model: PreTrainedModel, rollout: Rollout) -> Rows:
        """Completions behind one copy of their prompt or apart, whichever costs less (`models/row_layout.py`)."""
        return Rows.of(rollout, shared=self.shares_prompts(model, rollout))

    def read(self, model: PreTrainedModel, text: Rows) -> Tensor:
        """Hidden states of the rows, shape (B, T, D).

        Rows apart need no mask: padding stands at their end, where no token sees it, so that the causal mask of the
        model and its positions 0, 1, 2, ... are those of the sequence alone, also where attention has a window.
        """
        packed = {"attention_mask": text.masks(model), "position_ids": text.position_RW} if text.shared else {}
        decoded = decoder_of(model)(input_ids=text.ids_RW, use_cache=False, **packed)
        return decoded.last_hidden_state[text.row_B.unsqueeze(1), text.columns_BT]

    def shares_prompts(self, model: PreTrainedModel, rollout: Rollout) -> bool:
        """Whether completions of one prompt stand in one row."""
        return can_share(model) and shares_prompts(self._cost, rollout)

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """The language-model head, with the logit scale of Cohere, the divisor of Granite and the cap of Gemma."""
        head: Any = model.get_output_embeddings()
        config = model.config
        return OutputHead(
            weight_VD=head.weight,
            bias_V=head.bias,
            scale=getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def prompt_batches(self, model: PreTrainedModel, prompts: PromptBatch) -> list[list[int]]:
        """Prompts in groups of similar length, by the cost of their forward pass."""
        return length_batches(_lengths(prompts), self._cost, model.device.type)

    def start(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> DecoderOnlyState:
        """Read each prompt once and repeat its cache for its completions."""
        return DecoderOnlyState(model, prompts, per_prompt, groups)


def _lengths(prompts: PromptBatch) -> list[int]:
    return prompts.mask_PS.sum(dim=1).tolist()


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of a loaded model.

    Raises:
        ModelError: it is not one that this package can train.
    """
    if model.config.model_type in ENCODER_DECODERS:
        return EncoderDecoder(StackCost.of(model.get_encoder()), StackCost.of(model.get_decoder()))
    if model.config.model_type in DECODER_ONLY:
        return DecoderOnly(StackCost.of(decoder_of(model)))
    raise ModelError(
        f"model_type={model.config.model_type} cannot be trained here: choose a model of type "
        f"{', '.join(ENCODER_DECODERS + DECODER_ONLY)}."
    )


class PromptCodec(Protocol):
    """What turns prompts into ids, see `rollout.TextCodec`."""

    def prompts(self, examples: Sequence[Example]) -> PromptBatch:
        """Token ids of the examples' prompts."""
        ...


class HiddenStateModel(nn.Module):
    """A model whose forward gives the hidden states of completions, so that wrappers such as DDP see one forward.

    Attributes:
        codec: how this model's prompts are rendered, where that differs from the run's (a chat template of its own).
            Completions are the same ids for every model.
    """

    def __init__(self, model: PreTrainedModel, codec: PromptCodec | None = None) -> None:
        super().__init__()
        self.model = model
        self.architecture = architecture_of(model)
        self.codec = codec

    def forward(self, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        text = self.architecture.lay_out(self.model, replace(rollout, prompts=self.own(rollout.prompts)))
        return self.architecture.read(self.model, text)

    def start(
        self, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]] | None = None
    ) -> DecodingState:
        """Read the prompts once and open `per_prompt` empty completions of each.

        Args:
            prompts: P prompts.
            per_prompt: K.
            groups: which prompts share a forward pass; None: groups of similar length, by cost.
        """
        own = self.own(prompts)
        if groups is None:
            groups = self.architecture.prompt_batches(self.model, own)
        return self.architecture.start(self.model, own, per_prompt, groups)

    def generating(self) -> AbstractContextManager[None]:
        """Context of generation: an adapter is merged within it."""
        return nullcontext()

    def own(self, prompts: PromptBatch) -> PromptBatch:
        """The prompts as this model takes them."""
        return prompts if self.codec is None else self.codec.prompts(prompts.examples)

    def head(self) -> OutputHead:
        """The model's output head."""
        return self.architecture.output_head(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device
