"""Requests to servers that speak OpenAI's protocol: one try and its retries, and the text of a chat completion.

A language model as the judge of completions, behind an OpenAI-compatible server.
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
FIRST_PAUSE = 0.5  # seconds before the first retry; each further one waits twice as long
_BUSY = 429


class ServerError(RuntimeError):
    """What a server does instead of answering, as words that follow "the server"."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """None: the redirect is an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def post(url: str, path: str, body: dict[str, Any], key: str | None, timeout: float) -> bytes:
    """The answer to a request; tried again where the server is busy or fails, or the connection does.

    Args:
        url: of the server, with or without /v1.
        path: below /v1, e.g. completions.
        body: as JSON.
        key: sent as a bearer token; never shown.
        timeout: seconds of silence after which a try is given up.

    Raises:
        ServerError: there is no answer.
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
            if error.code < 500 and error.code != _BUSY:
                raise ServerError(problem) from None
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut short
            problem = f"cannot be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"
    raise ServerError(f"{problem}, after {RETRIES + 1} tries")


def chat(url: str, body: dict[str, Any], messages: Sequence[dict[str, str]], key: str | None, timeout: float) -> str:
    """The text of the first choice of a chat completion; `body` has model, temperature and max_tokens.

    Raises:
        ServerError: there is no answer, or none that is a chat completion.
    """
    answer = post(url, "chat/completions", {**body, "messages": list(messages)}, key, timeout)
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"gives an answer that is not a chat completion: {answer[:200]!r}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says for itself, on one line."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, HTTPException):
        text = ""
    return " ".join(text.split())[:300] or str(error.reason)


SLOTS = ("{prompt}", "{completion}")


class ChatServer:
    """`POST URL/v1/chat/completions`, tried again where the server is busy.

    Args:
        url: of the server, with or without /v1.
        model: the name that the server knows it by.
        api_key_variable: environment variable of the key; None sends none.
        timeout: seconds of silence after which a request is given up.
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

        Raises:
            ServerError: the server refuses, is not there, or answers something else.
        """
        body = {"model": self.model, "temperature": temperature, "max_tokens": max_tokens}
        try:
            return chat(self.url, body, messages, self._key, self.timeout)
        except ServerError as error:
            raise ServerError(f"url={self.url}: the server {error}") from None


class Judge:
    """What the judge says, from 0 (its lowest mark) to 1 (its highest); None where it names no mark.

    Args:
        server: where the judge is.
        template: what it is asked, with {prompt} and {completion}, and {reference} where that is wanted.
        verdict: regular expression whose first group is the mark in its answer; the last match counts.
        marks: the one that is worth 0 and the one that is worth 1.
        temperature: of its answers.
        max_tokens: of an answer.
        parallel: requests under way at one time.
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
        """One mark for each completion.

        Raises:
            ServerError: the server gives no answer.
        """
        references = [""] * len(prompts) if reference is None else reference
        rows = list(zip(prompts, completions, references, strict=True))
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda row: self._mark(*row), rows))

    def _mark(self, prompt: str, completion: str, reference: str) -> float | None:
        parts = {"{prompt}": prompt, "{completion}": completion, "{reference}": reference}
        # one pass: braces in a completion are no slots
        asked = re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], self.template)
        answer = self.server.answer([{"role": "user", "content": asked}], self.temperature, self.max_tokens)
        marks = self.verdict.findall(answer)
        try:
            last = float(marks[-1] if isinstance(marks[-1], str) else marks[-1][0])
        except (LookupError, ValueError):
            return None
        if not self.lowest <= last <= self.highest:
            return None
        return (last - self.lowest) / (self.highest - self.lowest)
