"""Rollouts written by a vLLM server, through trl's client; decoder-only students.

Before each rollout the student's weights go to the server over NCCL, with an adapter merged into them. Each prompt is
one request for its K completions, with a seed of its own: one seed for several prompts would draw the same noise for
all.
The server ends completions at the run's ends and nowhere else, and does not draw words that the tokenizer lacks.

Log-probabilities are those of the student here. Where the server's arithmetic differs, its samples are from a slightly
other distribution, which nothing corrects.
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

PARALLEL = 64  # requests under way, as many as trl's client keeps connections
_NEVER = -100.0  # logit_bias: the least that the protocol takes

Described = tuple[str, str, list[int]]  # name, dtype, shape


class Server(Protocol):
    """What is used of trl's `VLLMClient`."""

    def generate(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """`prompt_ids`, and `completion_ids` in the order of the prompts."""
        ...

    def update_named_params(self, metadata: list[Described], named_params: Iterator[tuple[str, Tensor]]) -> None:
        """Send weights, in the order of their descriptions."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget the prompts that older weights have read."""
        ...


def connect(url: str, group_port: int, wait: float, device: torch.device) -> Server:
    """A server that runs, and the NCCL group through which it takes weights.

    Args:
        url: of the server.
        group_port: where the group meets.
        wait: seconds after which the server must be up.
        device: of the student.

    Raises:
        ConfigError: vLLM is not installed.
        EndpointError: the server cannot be reached, or takes no weights.
    """
    from trl.generation.vllm_client import VLLMClient

    with _refusals(url):
        try:
            client = VLLMClient(_base(url), group_port=group_port, connection_timeout=wait)
        except ImportError as error:
            raise ConfigError([
                f"rollout.engine=vllm: {str(error).partition('.')[0]}, and its part that sends weights runs here. "
                'pip install "gkd_rl[vllm]", or set rollout.engine=transformers.'
            ]) from None  # fmt: skip
        client.init_communicator(device)
    return client


class VllmSampler(Sampler):
    """Takes completions from a server that has the student's weights."""

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
        """`per_prompt` completions of every prompt, up to the task's `max_completion_tokens`.

        Args:
            model: its weights are sent first.
            prompts: P prompts.
            per_prompt: K.
            generator: draws the seeds of the requests; None takes torch's own.

        Raises:
            EndpointError: the server fails, or answers with something else.
        """
        with _refusals(self._url):
            with model.generating():
                self._send(model)
            completions = self._ask(model, prompts, per_prompt, generator)
        examples = [example for example in prompts.examples for _ in range(per_prompt)]
        index_B = torch.arange(len(prompts.examples), device=self.codec.device).repeat_interleave(per_prompt)
        rollout = self.codec.completions(examples, completions, Source.student)
        return replace(rollout, prompts=prompts, prompt_index_B=index_B)

    def _send(self, model: HiddenStateModel) -> None:
        """The weights under the names that they have in a checkpoint, tied ones once."""
        weights = {
            name.replace(".base_layer.", "."): parameter.data
            for name, parameter in model.model.named_parameters()
            if ".lora_" not in name
        }
        described = [(name, str(one.dtype).removeprefix("torch."), list(one.shape)) for name, one in weights.items()]
        self._server.update_named_params(described, iter(weights.items()))
        self._server.reset_prefix_cache()

    def _ask(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> list[list[int]]:
        """Ids of B completions, those of a prompt beside one another."""
        own, P = model.own(prompts), len(prompts.examples)
        rows = [ids[mask].tolist() for ids, mask in zip(own.ids_PS.cpu(), own.mask_PS.cpu(), strict=True)]
        device = None if generator is None else generator.device
        seeds = torch.randint(2**31 - per_prompt, (P,), generator=generator, device=device).tolist()
        settings = self._settings(model, per_prompt)

        def ask(row: list[int], seed: int) -> list[list[int]]:
            extra = {**settings["generation_kwargs"], "seed": seed}
            answer = self._server.generate([row], **{**settings, "generation_kwargs": extra})
            self._check(answer, row, per_prompt)
            return answer["completion_ids"]

        with ThreadPoolExecutor(min(PARALLEL, P)) as pool:
            return [one for answer in pool.map(ask, rows, seeds) for one in answer]

    def _settings(self, model: HiddenStateModel, per_prompt: int) -> dict[str, Any]:
        """What all requests share."""
        sampling, codec = self.sampling, self.codec
        assert isinstance(sampling, Sampling)
        extra: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": list(codec.eos_ids)}
        lacking = range(codec.vocabulary, model.head().weight_VD.shape[0])
        if lacking:
            extra["logit_bias"] = {str(word): _NEVER for word in lacking}
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
        """Completions of this very prompt, in words of the tokenizer, each up to an end or to the limit."""
        codec, completions = self.codec, answer["completion_ids"]
        if answer["prompt_ids"] != [prompt]:
            raise _refusal(self._url, "reads another prompt than the one that was sent")
        if len(completions) != per_prompt:
            raise _refusal(self._url, f"gives {len(completions)} completions where {per_prompt} were asked for")
        for ids in completions:
            odd = [word for word in ids if not 0 <= word < codec.vocabulary]
            if odd:
                raise _refusal(self._url, f"writes id {odd[0]}, and the student has {codec.vocabulary} words")
            if len(ids) != codec.max_completion_tokens and (not ids or ids[-1] not in codec.eos_ids):
                raise _refusal(
                    self._url,
                    f"ends a completion after {len(ids)} of {codec.max_completion_tokens} tokens, with none of the "
                    f"ends {list(codec.eos_ids)}",
                )


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """Whatever fails in there is the server's refusal."""
    try:
        yield
    except GkdRlError:
        raise
    except Exception as error:  # trl's client raises no narrower one
        words = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise _refusal(url, f"does not do what is asked ({words.rstrip('.')})") from error


def _refusal(url: str, problem: str) -> EndpointError:
    return EndpointError(f"rollout.vllm.url={url}: the server {problem}; {_TAKES}.")


_TAKES = (
    "rollout.engine=vllm takes a server of the student's own checkpoint, started with VLLM_SERVER_DEV_MODE=1 "
    """vllm serve STUDENT --weight-transfer-config '{"backend": "nccl"}'; or set rollout.engine=transformers"""
)
