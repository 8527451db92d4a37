"""What differs between model architectures, and nothing else: how prompts and completions become hidden states.

`EncoderDecoder` serves T5-style models: the encoder runs once per prompt, whatever the number of completions. A further
architecture implements the same four methods.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from gkd_rl.errors import ModelError
from gkd_rl.masking import shift_right
from gkd_rl.types import OutputHead, PromptBatch, Rollout

ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "bart")  # whose log-probabilities equal transformers' own


class DecodingState(Protocol):
    """The rows of a batch that are still being written."""

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Hidden states (B, D) that predict the next token after `last_ids_B`."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        ...


class Architecture(Protocol):
    """The contract that student, teacher, sampler and trainer rely on."""

    def hidden_states(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        ...

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """How the model's hidden states become logits."""
        ...

    def start(self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int) -> DecodingState:
        """Read the prompts once and open `per_prompt` empty completions of each."""
        ...

    def start_id(self, model: PreTrainedModel) -> int:
        """The token that stands before a completion."""
        ...


class EncoderDecoder:
    """T5, T5 v1.1, Flan-T5 and models with the same encoder and decoder modules."""

    def hidden_states(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Encoder once per prompt, decoder over all completions with teacher forcing; shape (B, T, D)."""
        prompts = rollout.prompts
        encoded_PSD = _encoder(model)(input_ids=prompts.ids_PS, attention_mask=prompts.mask_PS.long()).last_hidden_state
        decoded = _decoder(model)(
            input_ids=shift_right(rollout.ids_BT, self.start_id(model)),
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
        encoded = _encoder(model)(input_ids=prompts.ids_PS, attention_mask=prompts.mask_PS.long()).last_hidden_state
        return EncoderDecoderState(
            model, encoded.repeat_interleave(per_prompt, 0), prompts.mask_PS.long().repeat_interleave(per_prompt, 0)
        )

    def start_id(self, model: PreTrainedModel) -> int:
        """The decoder's start token.

        Raises:
            ModelError: the checkpoint's configuration names none.
        """
        start = model.config.decoder_start_token_id
        if start is None:
            raise ModelError("the model's config.decoder_start_token_id is null: set it to the padding id for T5.")
        return int(start)


class EncoderDecoderState:
    """Cross-attention inputs and the self-attention cache of the unfinished rows."""

    def __init__(self, model: PreTrainedModel, encoded_BSD: Tensor, mask_BS: Tensor) -> None:
        self._decoder = _decoder(model)
        self._encoded_BSD = encoded_BSD
        self._mask_BS = mask_BS
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Hidden states (B, D) after one more token."""
        decoded = self._decoder(
            input_ids=last_ids_B.unsqueeze(1),
            encoder_hidden_states=self._encoded_BSD,
            encoder_attention_mask=self._mask_BS,
            cache=self._cache,
            use_cache=True,
        )
        return decoded.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Select rows of the encoder output, its mask and both caches."""
        self._encoded_BSD = self._encoded_BSD[rows]
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of a loaded model.

    Raises:
        ModelError: it is not one that this package can train.
    """
    if model.config.model_type in ENCODER_DECODERS:
        return EncoderDecoder()
    raise ModelError(
        f"model_type={model.config.model_type} cannot be trained here: choose a model of type "
        f"{', '.join(ENCODER_DECODERS)}."
    )


def _encoder(model: PreTrainedModel) -> nn.Module:
    return model.get_encoder()


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module):
        raise ModelError(f"{type(model).__name__} has no decoder module.")
    return decoder


class HiddenStateModel(nn.Module):
    """A model whose forward gives the hidden states of completions, so that wrappers such as DDP see one forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.architecture = architecture_of(model)

    def forward(self, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        return self.architecture.hidden_states(self.model, rollout)

    def head(self) -> OutputHead:
        """The model's output head."""
        return self.architecture.output_head(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device
