"""Rollouts from a vLLM server, through trl's client; for decoder-only students.

Before each rollout the student's weights are sent to the server over NCCL, with an adapter merged into them. Each
prompt is one request for its K completions, with its own seed: with one seed for several prompts the server would draw
the same noise for all of them. The server stops at the run's end-of-sequence tokens only, and does not sample tokens
that the tokenizer lacks.

Log-probabilities are computed by the student in this process. Where the server's arithmetic differs, its samples come
from a slightly different distribution; there is no importance correction.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gkd_rl.errors import ConfigError, EndpointError, GkdRlError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler, Sampling
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.types import PromptBatch, Rollout, Source

MAX_REQUESTS = 64  # at one time; trl's client keeps as many connections
_SUPPRESSED = -100.0  # logit_bias: the lowest value of the protocol

WeightInfo = tuple[str, str, list[int]]  # name, dtype, shape


class Server(Protocol):
    """The methods of trl's `VLLMClient` that are used here."""

    def generate(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Returns `prompt_ids`, and `completion_ids` in the order of the prompts."""
        ...

    def update_named_params(self, metadata: list[WeightInfo], named_params: Iterator[tuple[str, Tensor]]) -> None:
        """Send weights, in the order of `metadata`."""
        ...

    def reset_prefix_cache(self) -> None:
        """Drop cached prompts, which were computed with earlier weights."""
        ...


def connect(url: str, group_port: int, wait: float, device: torch.device) -> Server:
    """Connect to a running server and join the NCCL group for sending weights.

    Args:
        url: of the server.
        group_port: TCP port of the group.
        wait: seconds to wait for the server.
        device: of the student.

    Raises:
        ConfigError: vLLM is not installed.
        EndpointError: the server cannot be reached, or does not accept weights.
    """
    from trl.generation.vllm_client import VLLMClient

    with _endpoint_errors(url):
        try:
            client = VLLMClient(_base(url), group_port=group_port, connection_timeout=wait)
        except ImportError as error:
            raise ConfigError([
                f"rollout.engine=vllm: {str(error).partition('.')[0]}; sending weights needs it in this process as "
                'well. pip install "gkd_rl[vllm]", or set rollout.engine=transformers.'
            ]) from None  # fmt: skip
        client.init_communicator(device)
    return client


class VllmSampler(Sampler):
    """Samples rollouts on a server, after sending it the student's weights."""

    def __init__(self, codec: TextCodec, sampling: Sampling, server: Server, url: str) -> None:
        """Make a sampler.

        Args:
            codec: of a decoder-only student.
            sampling: temperature, top_p and top_k.
            server: see `connect`.
            url: of the server, for messages.
        """
        super().__init__(codec, sampling)
        self._server = server
        self._url = url

    @torch.no_grad()
    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        """Sample `per_prompt` completions of every prompt, of at most the task's `max_completion_tokens` tokens.

        Args:
            model: its weights are sent first.
            prompts: P prompts.
            per_prompt: K.
            generator: draws the seeds of the requests; None uses torch's default generator.

        Raises:
            EndpointError: the server fails, or its answer is not such completions.
        """
        with _endpoint_errors(self._url):
            with model.generating():
                self._send_weights(model)
            completions = self._request_completions(model, prompts, per_prompt, generator)
        examples = [example for example in prompts.examples for _ in range(per_prompt)]
        index_B = torch.arange(len(prompts.examples), device=self.codec.device).repeat_interleave(per_prompt)
        rollout = self.codec.completions(examples, completions, Source.student)
        return replace(rollout, prompts=prompts, prompt_index_B=index_B)

    def _send_weights(self, model: HiddenStateModel) -> None:
        """Send the weights under their names in a checkpoint, tied ones once."""
        weights = {
            name.replace(".base_layer.", "."): parameter.data
            for name, parameter in model.model.named_parameters()
            if ".lora_" not in name
        }
        described = [(name, str(one.dtype).removeprefix("torch."), list(one.shape)) for name, one in weights.items()]
        self._server.update_named_params(described, iter(weights.items()))
        self._server.reset_prefix_cache()

    def _request_completions(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> list[list[int]]:
        """Ids of B completions; those of one prompt are adjacent."""
        own, P = model.own(prompts), len(prompts.examples)
        rows = [ids[mask].tolist() for ids, mask in zip(own.ids_PS.cpu(), own.mask_PS.cpu(), strict=True)]
        device = None if generator is None else generator.device
        seeds = torch.randint(2**31 - per_prompt, (P,), generator=generator, device=device).tolist()
        settings = self._request_settings(model, per_prompt)

        def request(row: list[int], seed: int) -> list[list[int]]:
            extra = {**settings["generation_kwargs"], "seed": seed}
            answer = self._server.generate([row], **{**settings, "generation_kwargs": extra})
            self._check(answer, row, per_prompt)
            return answer["completion_ids"]

        with ThreadPoolExecutor(min(MAX_REQUESTS, P)) as pool:
            return [one for answer in pool.map(request, rows, seeds) for one in answer]

    def _request_settings(self, model: HiddenStateModel, per_prompt: int) -> dict[str, Any]:
        """The settings that all requests share."""
        sampling, codec = self.sampling, self.codec
        assert isinstance(sampling, Sampling)
        extra: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": list(codec.eos_ids)}
        lacking = range(codec.vocabulary, model.head().weight_VD.shape[0])
        if lacking:
            extra["logit_bias"] = {str(token): _SUPPRESSED for token in lacking}
        return {
            "n": per_prompt,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": codec.max_completion_tokens,
            "logprobs": None,
            "generation_kwargs": extra,
        }

    def _check(self, answer: dict[str, Any], prompt: list[int], per_prompt: int) -> None:
        """Refuse an answer unless it has K completions of this prompt, in valid ids, each ended or of full length."""
        codec, completions = self.codec, answer["completion_ids"]
        if answer["prompt_ids"] != [prompt]:
            raise _endpoint_error(self._url, "returned another prompt than the one that was sent")
        if len(completions) != per_prompt:
            raise _endpoint_error(
                self._url, f"returned {len(completions)} completions where {per_prompt} were requested"
            )
        for ids in completions:
            invalid = [token for token in ids if not 0 <= token < codec.vocabulary]
            if invalid:
                raise _endpoint_error(
                    self._url, f"returned token id {invalid[0]}, but the student has {codec.vocabulary} tokens"
                )
            if len(ids) != codec.max_completion_tokens and (not ids or ids[-1] not in codec.eos_ids):
                raise _endpoint_error(
                    self._url,
                    f"ended a completion after {len(ids)} of {codec.max_completion_tokens} tokens, without one of the "
                    f"end-of-sequence ids {list(codec.eos_ids)}",
                )


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


@contextmanager
def _endpoint_errors(url: str) -> Iterator[None]:
    """Turn every exception inside the block into an EndpointError."""
    try:
        yield
    except GkdRlError:
        raise
    except Exception as error:  # trl's client raises plain exceptions
        text = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise _endpoint_error(url, f"failed ({text.rstrip('.')})") from error


def _endpoint_error(url: str, problem: str) -> EndpointError:
    return EndpointError(f"rollout.vllm.url={url}: the server {problem}; {_REQUIREMENT}.")


_REQUIREMENT = (
    "rollout.engine=vllm needs a server of the student's own checkpoint, started with VLLM_SERVER_DEV_MODE=1 "
    """vllm serve STUDENT --weight-transfer-config '{"backend": "nccl"}'; or set rollout.engine=transformers"""
)
