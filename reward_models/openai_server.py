"""Requests to servers that speak OpenAI's protocol: one try and its retries, and the text of a chat completion."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
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
