"""Settings of how rollouts are written, where they contradict one another."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from gkd_rl.choices import RolloutEngine
from gkd_rl.config import Config
from gkd_rl.launched import processes


def rollout_contradictions(config: Config) -> Iterator[str]:
    """One sentence for each problem."""
    rollout = config.rollout
    if rollout.engine is not RolloutEngine.vllm:
        return
    if rollout.static_cache:
        yield (
            "rollout.static_cache=true with rollout.engine=vllm has no effect, the server has a cache of its own: "
            "set rollout.static_cache=false, or rollout.engine=transformers."
        )
    if processes() > 1:
        yield (
            f"rollout.engine=vllm with {processes()} processes is not served: one process sends the weights. "
            "Launch one, or set rollout.engine=transformers."
        )
    if config.lmbda == 0:
        yield (
            "rollout.engine=vllm with lmbda=0 has nothing to write: set rollout.engine=transformers, or lmbda above 0."
        )
    yield from check_url("rollout.vllm.url", rollout.vllm.url)


def check_url(key: str, url: str, of_secrets: str = "") -> Iterator[str]:
    """An address without secrets: it is written to the run's files.

    Args:
        key: of the setting.
        url: its value.
        of_secrets: where a secret goes instead, for the message.
    """
    takes = f"{key} takes http:// or https:// with a host, e.g. http://localhost:8000"
    try:
        parts = urlsplit(url)
        good, secret = parts.scheme in ("http", "https") and bool(parts.hostname), parts.password or parts.username
        good = good and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        good, secret = False, None
    if secret:
        yield f"{key} holds a user or a password: {takes}{of_secrets}."
    elif not good:
        yield f"{key}={url} is no address of a server: {takes}."
