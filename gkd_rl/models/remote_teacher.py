"""A teacher behind an OpenAI-compatible server: its likeliest tokens at every position of a completion, over HTTP.

One request per completion: `POST URL/v1/completions` with the token ids of prompt and completion as `prompt` and
`prompt_logprobs=k`, an extension of vLLM. Its answer has, for each token, the k likeliest tokens at that position with
their log-probabilities at temperature 1. Servers that give log-probabilities of generated tokens only
cannot serve as teachers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from gkd_rl.errors import EndpointError
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.types import Projection, Rollout, TeacherOutput, TopLogProbs
from reward_models.models.judge import ServerError, post

_ROUNDING = 1e-2  # by which the probabilities of a server that computes in bfloat16 may exceed 1 together

Listed = list[tuple[int, float]]  # (id, log-probability), likeliest first


@dataclass(frozen=True)
class EndpointTeacher:
    """The server and its requests.

    Attributes:
        url: of the server, with or without /v1.
        model: the name that the server knows it by.
        top_k: tokens at each position.
        vocabulary: size of the student's vocabulary.
        timeout: seconds of silence after which a request is given up.
        parallel: requests under way at one time.
        api_key: sent as a bearer token; never shown.
    """

    url: str
    model: str
    top_k: int
    vocabulary: int
    timeout: float
    parallel: int
    api_key: str | None = field(default=None, repr=False)

    def __call__(self, rollout: Rollout) -> TopLogProbs:
        """Its likeliest tokens at every completion token of a decoder-only rollout.

        Raises:
            EndpointError: the server does not answer, or not with what was asked for.
        """
        rows = rollout.prompt_index_B.tolist()
        prompts = _unpadded(rollout.prompts.ids_PS, rollout.prompts.mask_PS)
        completions = _unpadded(rollout.ids_BT, rollout.mask_BT)
        with ThreadPoolExecutor(self.parallel) as pool:
            prompts_B = [prompts[row] for row in rows]
            answers = list(pool.map(self.listed, prompts_B, completions))
        ids_BTK = torch.zeros(*rollout.ids_BT.shape, self.top_k, dtype=torch.long)
        logp_BTK = torch.zeros(ids_BTK.shape)
        for i, answer in enumerate(answers):
            table = torch.tensor(answer, dtype=torch.float64)  # ids are exact in float64
            ids_BTK[i, : len(answer)] = table[..., 0].long()
            logp_BTK[i, : len(answer)] = table[..., 1].float()
        device = rollout.ids_BT.device
        return TopLogProbs(ids_BTK.to(device), logp_BTK.to(device))

    def listed(self, prompt: Sequence[int], completion: Sequence[int]) -> list[Listed]:
        """The likeliest tokens at each position of the completion."""
        return [self._likeliest(words) for words in self._ask([*prompt, *completion])[len(prompt) :]]

    def check(self, ids: Sequence[int], decode: Callable[[int], str]) -> None:
        """Send one request, before anything is loaded, and compare the texts of the answer's tokens.

        Args:
            ids: a prompt of two tokens or more.
            decode: the student's text of an id.

        Raises:
            EndpointError: the server's tokens are not the student's.
        """
        differing, compared = [], 0
        for words in self._ask(ids)[1:]:
            for word, _ in self._likeliest(words):
                theirs, ours = words[str(word)].get("decoded_token"), decode(word)
                if isinstance(theirs, str) and "\ufffd" not in theirs + ours:  # part of a character
                    compared += 1
                    if theirs.strip(" Ġ▁\n") != ours.strip():
                        differing.append(f"id {word} is {theirs!r} there and {ours!r} here")
        if 2 * len(differing) > compared:  # servers differ in how they show a token or two
            raise self._refusal(
                f"has another tokenizer than the student: {differing[0]}", "choose a model with the student's tokenizer"
            )

    def _ask(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The server's entry for each token; the first one has no distribution and is empty."""
        answer = self._post({
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self.top_k,
        })  # fmt: skip
        try:
            found = json.loads(answer)["choices"][0].get("prompt_logprobs")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._refusal("gives an answer that is not a completion", _VLLM) from error
        if not isinstance(found, list):
            raise self._refusal("gives no prompt_logprobs", _VLLM)
        if len(found) != len(ids):
            raise self._refusal(f"gives log-probabilities of {len(found)} tokens where {len(ids)} were sent", _VLLM)
        if not all(isinstance(words, dict) for words in found[1:]):
            raise self._refusal("gives prompt_logprobs that are not a mapping for each token", _VLLM)
        return [{}, *found[1:]]

    def _likeliest(self, words: dict[str, Any]) -> Listed:
        """The k likeliest; a server adds the token that stands there, however unlikely."""
        try:
            pairs = [(int(word), float(facts["logprob"])) for word, facts in words.items()]
        except (ValueError, LookupError, TypeError) as error:
            raise self._refusal("gives tokens without an id or a logprob", _VLLM) from error
        pairs = sorted(pairs, key=lambda pair: -pair[1])[: self.top_k]
        if len(pairs) < self.top_k:
            raise self._refusal(
                f"gives {len(pairs)} tokens where teacher.endpoint.top_k={self.top_k} asks for more",
                f"set teacher.endpoint.top_k={len(pairs)}",
            )
        for word, logp in pairs:
            if not 0 <= word < self.vocabulary:
                raise self._refusal(
                    f"names id {word}, and the student has {self.vocabulary} tokens",
                    "choose a model with the student's tokenizer",
                )
            if math.isnan(logp) or logp > _ROUNDING:
                raise self._refusal(f"gives {logp} as a log-probability", _VLLM)
        if sum(math.exp(logp) for _, logp in pairs) > 1 + _ROUNDING:
            raise self._refusal("gives probabilities that exceed 1 together", _VLLM)
        return pairs

    def _post(self, body: dict[str, Any]) -> bytes:
        """The answer to a request."""
        try:
            return post(self.url, "completions", body, self.api_key, self.timeout)
        except ServerError as error:
            raise self._refusal(str(error), _CHECK) from None

    def _refusal(self, problem: str, instead: str) -> EndpointError:
        return EndpointError(f"teacher.endpoint.url={self.url}: the server {problem}; {instead}.")


_VLLM = "teacher.endpoint takes a server that gives prompt_logprobs as vLLM does"
_CHECK = "check that it runs, and teacher.endpoint.model, .top_k, .api_key_variable and .timeout"


def _unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[used].tolist() for row, used in zip(ids.cpu(), mask.cpu(), strict=True)]


def forward_outputs(model: HiddenStateModel | EndpointTeacher, rollout: Rollout) -> TeacherOutput:
    """A model's states and its head, or a server's likeliest tokens, at each completion token."""
    if isinstance(model, EndpointTeacher):
        return model(rollout)
    return Projection(model(rollout), model.head())
