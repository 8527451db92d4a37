"""What differs between model architectures, and nothing else: how prompts and completions become hidden states.

`EncoderDecoder` serves T5-style models: the encoder runs once per prompt, whatever the number of completions.
`DecoderOnly` serves Llama-like models: prompt and completions stand in one row. A further architecture implements the
same three methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from gkd_rl.errors import ModelError
from gkd_rl.masking import shift_right
from gkd_rl.packing import Rows, shares_prompts, takes_masks
from gkd_rl.stack_cost import StackCost
from gkd_rl.types import Example, OutputHead, PromptBatch, Rollout

# Model types whose log-probabilities equal transformers' own and whose greedy decoding equals its generate, by test.
ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "bart", "mbart")
DECODER_ONLY = (
    *("llama", "smollm3", "qwen2", "qwen3", "mistral", "ministral", "phi3", "gemma", "gemma2", "gemma3_text"),
    *("granite", "cohere", "cohere2", "olmo2", "olmo3"),
)


class DecodingState(Protocol):
    """The rows of a batch that are still being written.

    Attributes:
        hidden_BD: hidden states that predict the next token; of a fresh state, the first token.
    """

    hidden_BD: Tensor

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        ...


class Architecture(Protocol):
    """The contract that student, teacher, sampler and trainer rely on.

    Attributes:
        decoder_only: how texts become ids, see `TextCodec`.
    """

    decoder_only: bool

    def hidden_states(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        ...

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """How the model's hidden states become logits."""
        ...

    def start(self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int) -> DecodingState:
        """Read the prompts once and open `per_prompt` empty completions of each."""
        ...


class EncoderDecoder:
    """T5, T5 v1.1, Flan-T5 and models with the same encoder and decoder modules."""

    decoder_only = False

    def hidden_states(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Encoder once per prompt, decoder over all completions with teacher forcing; shape (B, T, D)."""
        prompts = rollout.prompts
        encoded_PSD = model.get_encoder()(
            input_ids=prompts.ids_PS, attention_mask=prompts.mask_PS.long()
        ).last_hidden_state
        decoded = _decoder(model)(
            input_ids=shift_right(rollout.ids_BT, _start_id(model)),
            encoder_hidden_states=encoded_PSD[rollout.prompt_index_B],
            encoder_attention_mask=prompts.mask_PS[rollout.prompt_index_B].long(),
            use_cache=False,
        )
        return decoded.last_hidden_state

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

    def start(self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int) -> EncoderDecoderState:
        """Encode each prompt once and repeat the result for its completions."""
        encoded = model.get_encoder()(input_ids=prompts.ids_PS, attention_mask=prompts.mask_PS.long()).last_hidden_state
        return EncoderDecoderState(
            model, encoded.repeat_interleave(per_prompt, 0), prompts.mask_PS.long().repeat_interleave(per_prompt, 0)
        )


class EncoderDecoderState:
    """Cross-attention inputs and the self-attention cache of the unfinished rows."""

    def __init__(self, model: PreTrainedModel, encoded_BSD: Tensor, mask_BS: Tensor) -> None:
        self._decoder = _decoder(model)
        self._encoded_BSD = encoded_BSD
        self._mask_BS = mask_BS
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.hidden_BD = self.step(mask_BS.new_full(mask_BS.shape[:1], _start_id(model)))

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        decoded = self._decoder(
            input_ids=last_ids_B.unsqueeze(1),
            encoder_hidden_states=self._encoded_BSD,
            encoder_attention_mask=self._mask_BS,
            cache=self._cache,
            use_cache=True,
        )
        self.hidden_BD = decoded.last_hidden_state[:, -1]
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Select rows of the hidden states, the encoder output, its mask and both caches."""
        self.hidden_BD = self.hidden_BD[rows]
        self._encoded_BSD = self._encoded_BSD[rows]
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)


class DecoderOnly:
    """Llama and models with the same modules. Every prompt has at least one token."""

    decoder_only = True

    def __init__(self, cost: StackCost) -> None:
        self._cost = cost

    def hidden_states(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Completions behind one copy of their prompt or apart, whichever costs less (`packing.py`); shape (B, T, D).

        Rows apart need no mask: padding stands at their end, where no token sees it, so that the causal mask of the
        model and its positions 0, 1, 2, ... are those of the sequence alone, also where attention has a window.
        """
        shared = self.shares_prompts(model, rollout)
        rows = Rows.of(rollout, shared=shared)
        packed = {"attention_mask": rows.masks(model), "position_ids": rows.position_RW} if shared else {}
        decoded = _decoder(model)(input_ids=rows.ids_RW, use_cache=False, **packed)
        return decoded.last_hidden_state[rows.row_B.unsqueeze(1), rows.columns_BT]

    def shares_prompts(self, model: PreTrainedModel, rollout: Rollout) -> bool:
        """Whether completions of one prompt stand in one row."""
        return takes_masks(model) and shares_prompts(self._cost, rollout)

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

    def start(self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int) -> DecoderOnlyState:
        """Read each prompt once and repeat its cache for its completions."""
        return DecoderOnlyState(model, prompts, per_prompt)


class DecoderOnlyState:
    """The cache of the unfinished rows and which of its columns hold tokens.

    Prompts are padded on the left: a window of attention counts columns, so none may stand between two tokens.
    """

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int) -> None:
        order_PS = prompts.mask_PS.long().argsort(dim=1, stable=True)
        self._decoder = _decoder(model)
        self._cache = DynamicCache(config=model.config)
        self._mask_BS = prompts.mask_PS.gather(1, order_PS).long()
        self.hidden_BD = self._read(prompts.ids_PS.gather(1, order_PS)).repeat_interleave(per_prompt, 0)
        self._mask_BS = self._mask_BS.repeat_interleave(per_prompt, 0)
        self._cache.batch_repeat_interleave(per_prompt)

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        self._mask_BS = torch.nn.functional.pad(self._mask_BS, (0, 1), value=1)
        self.hidden_BD = self._read(last_ids_B.unsqueeze(1))
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Select rows of the hidden states, the mask and the cache."""
        self.hidden_BD = self.hidden_BD[rows]
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)

    def _read(self, ids_BN: Tensor) -> Tensor:
        """Hidden states (B, D) of the last of N new columns; the mask has these columns already."""
        positions_BS = (self._mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        decoded = self._decoder(
            input_ids=ids_BN,
            attention_mask=self._mask_BS,
            position_ids=positions_BS[:, -ids_BN.shape[1] :],
            cache=self._cache,
            use_cache=True,
        )
        return decoded.last_hidden_state[:, -1]


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of a loaded model.

    Raises:
        ModelError: it is not one that this package can train.
    """
    if model.config.model_type in ENCODER_DECODERS:
        return EncoderDecoder()
    if model.config.model_type in DECODER_ONLY:
        return DecoderOnly(StackCost.of(_decoder(model)))
    raise ModelError(
        f"model_type={model.config.model_type} cannot be trained here: choose a model of type "
        f"{', '.join(ENCODER_DECODERS + DECODER_ONLY)}."
    )


def _start_id(model: PreTrainedModel) -> int:
    """The token that stands before a completion of an encoder-decoder."""
    start = model.config.decoder_start_token_id
    if start is None:
        raise ModelError("the model's config.decoder_start_token_id is null: set it to the padding id for T5.")
    return int(start)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module):
        raise ModelError(f"{type(model).__name__} has no decoder module.")
    return decoder


class PromptCodec(Protocol):
    """What turns prompts into ids, see `rollout.TextCodec`."""

    def prompts(self, examples: Sequence[Example]) -> PromptBatch:
        """Token ids of the examples' prompts."""
        ...


class HiddenStateModel(nn.Module):
    """A model whose forward gives the hidden states of completions, so that wrappers such as DDP see one forward.

    Attributes:
        codec: how this model reads prompts, where it is not how the run does (a chat template of its own). Completions
            are the same ids for every model.
    """

    def __init__(self, model: PreTrainedModel, codec: PromptCodec | None = None) -> None:
        super().__init__()
        self.model = model
        self.architecture = architecture_of(model)
        self.codec = codec

    def forward(self, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        return self.architecture.hidden_states(self.model, replace(rollout, prompts=self._own(rollout.prompts)))

    def start(self, prompts: PromptBatch, per_prompt: int) -> DecodingState:
        """Read the prompts once and open `per_prompt` empty completions of each."""
        return self.architecture.start(self.model, self._own(prompts), per_prompt)

    def generating(self) -> AbstractContextManager[None]:
        """Within it the model writes: an adapter is merged meanwhile."""
        return nullcontext()

    def _own(self, prompts: PromptBatch) -> PromptBatch:
        """The prompts as this model reads them."""
        return prompts if self.codec is None else self.codec.prompts(prompts.examples)

    def head(self) -> OutputHead:
        """The model's output head."""
        return self.architecture.output_head(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device
