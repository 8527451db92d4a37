"""A language model as judge: it grades completions behind an OpenAI-compatible server.

`post` and `chat_completion` are the client for such servers, with retries; other modules use it too. `Judge` fills a
prompt template, sends it, and reads the grade from the reply with a regular expression.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

RETRIES = 3
FIRST_PAUSE = 0.5  # seconds before the first retry; each further pause is twice as long
TOO_MANY_REQUESTS = 429
SLOTS = ("{prompt}", "{completion}")  # that a template must have


class ServerError(RuntimeError):
    """A failed request; the message is a predicate that follows "the server"."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats redirects as errors: a redirected request would send the key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Return None, which makes the redirect an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def post(url: str, path: str, body: dict[str, Any], key: str | None, timeout: float) -> bytes:
    """The response to a POST request; busy servers, server errors and lost connections are retried `RETRIES` times.

    Args:
        url: of the server, with or without /v1.
        path: below /v1, e.g. completions.
        body: sent as JSON.
        key: sent as a bearer token, never shown; None sends none.
        timeout: seconds without data after which a try fails.

    Raises:
        ServerError: all tries failed, or the server refused the request.
    """
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/{path}"
    headers = {"Content-Type": "application/json"}
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
    problem = ""
    for attempt in range(RETRIES + 1):
        if attempt > 0:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            with _OPENER.open(request, timeout=timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            problem = f"answers HTTP {error.code} ({_reason(error)})"
            if error.code < 500 and error.code != TOO_MANY_REQUESTS:
                raise ServerError(problem) from None
        except (OSError, HTTPException) as error:  # refused, reset, timed out, incomplete
            problem = f"cannot be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"
    raise ServerError(f"{problem}, after {RETRIES + 1} tries")


def chat_completion(
    url: str, body: dict[str, Any], messages: Sequence[dict[str, str]], key: str | None, timeout: float
) -> str:
    """The text of the first choice of a chat completion.

    Args:
        url: as in `post`.
        body: model, temperature and max_tokens.
        messages: dicts of role and content.
        key: as in `post`.
        timeout: as in `post`.

    Raises:
        ServerError: the request failed, or the response is not a chat completion.
    """
    answer = post(url, "chat/completions", {**body, "messages": list(messages)}, key, timeout)
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"returns an answer that is not a chat completion: {answer[:200]!r}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """The body of an error response, on one line and shortened; the reason phrase if it is empty."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, HTTPException):
        text = ""
    return " ".join(text.split())[:300] or str(error.reason)


class ChatServer:
    """A server with the endpoint `POST URL/v1/chat/completions`.

    Args:
        url: of the server, with or without /v1.
        model: the model's name on the server.
        api_key_variable: environment variable with the key; None sends no key.
        timeout: seconds without data after which a request fails.

    Raises:
        ValueError: the URL has no scheme, or the environment variable is not set.
    """

    def __init__(self, url: str, model: str, api_key_variable: str | None, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url}: takes an address like http://localhost:8000.")
        self._key = None if api_key_variable is None else os.environ.get(api_key_variable, "").strip()
        if self._key == "":
            raise ValueError(
                f"api_key_variable={api_key_variable}: the environment has no key under that name; "
                f"export {api_key_variable}=KEY, or set api_key_variable to null."
            )
        self.url, self.model, self.timeout = url, model, timeout

    def answer(self, messages: Sequence[dict[str, str]], temperature: float, max_tokens: int) -> str:
        """The text of the first choice.

        Args:
            messages: dicts of role and content.
            temperature: of the sampling.
            max_tokens: longest answer.

        Raises:
            ServerError: the request failed.
        """
        body = {"model": self.model, "temperature": temperature, "max_tokens": max_tokens}
        try:
            return chat_completion(self.url, body, messages, self._key, self.timeout)
        except ServerError as error:
            raise ServerError(f"url={self.url}: the server {error}") from None


class Judge:
    """The judge's grade of a completion, scaled to 0 (lowest grade) to 1 (highest); None without a valid grade.

    Args:
        server: where the judge runs.
        template: prompt of the judge, with {prompt} and {completion}, and optionally {reference}.
        verdict: regular expression whose first group is the grade in the reply; its last match counts.
        marks: lowest and highest grade.
        temperature: of the judge's replies.
        max_tokens: longest reply.
        parallel: requests at one time.

    Raises:
        ValueError: a slot is missing in `template`, `marks` are not two increasing numbers, or `verdict` has no group.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        server: ChatServer,
        template: str,
        verdict: str,
        marks: Sequence[float],
        temperature: float = 0.0,
        max_tokens: int = 512,
        parallel: int = 8,
    ) -> None:
        missing = [slot for slot in SLOTS if slot not in template]
        if missing:
            raise ValueError(f"template: {missing[0]} is not in it; it takes {' and '.join(SLOTS)}.")
        if len(marks) != 2 or not marks[0] < marks[1]:
            raise ValueError(f"marks={list(marks)}: takes the lowest and the highest, e.g. [1, 10].")
        if re.compile(verdict).groups < 1:
            raise ValueError(f"verdict={verdict!r}: it takes a group for the mark, e.g. 'Mark: ([0-9]+)'.")
        self.server = server
        self.template = template
        self.verdict = re.compile(verdict)
        self.lowest, self.highest = marks
        self.temperature, self.max_tokens, self.parallel = temperature, max_tokens, parallel

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str] | None = None, **columns: Any
    ) -> list[float | None]:
        """Grades of B completions, [B]; `reference` fills {reference}, empty without that column.

        Raises:
            ServerError: a request failed.
        """
        references = [""] * len(prompts) if reference is None else reference
        rows = list(zip(prompts, completions, references, strict=True))
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda row: self._grade(*row), rows))

    def _grade(self, prompt: str, completion: str, reference: str) -> float | None:
        parts = {"{prompt}": prompt, "{completion}": completion, "{reference}": reference}
        # One pass over the template, so that a slot's name inside a completion is not replaced.
        content = re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], self.template)
        reply = self.server.answer([{"role": "user", "content": content}], self.temperature, self.max_tokens)
        grades = self.verdict.findall(reply)
        try:
            last = float(grades[-1] if isinstance(grades[-1], str) else grades[-1][0])
        except (LookupError, ValueError):
            return None
        if not self.lowest <= last <= self.highest:
            return None
        return (last - self.lowest) / (self.highest - self.lowest)
