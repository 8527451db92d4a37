"""One maker for each entry of a cache: of several processes that need it, one makes it and the others wait.

The lock is the kernel's (flock), so that a process that dies, however it dies, leaves none behind; its file stays.

One component of a reward, called in batches, kept per text, in a limited time; and what happens where it fails.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def entry_lock(entry: Path) -> Iterator[None]:
    """Hold the lock of `entry`, a folder that may not be there yet; look for it again once the lock is held.

    Args:
        entry: its lock is the file beside it with the suffix `.lock`.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for %s, which another process makes ...", entry)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


SILENCE = 300.0  # seconds of a call without a time limit after which that is said
HANGS = "a reward has not answered for %g seconds, and is waited for; reward.timeout=SECONDS gives up"
Reward = Callable[..., Sequence[float | None]]
Row = tuple[str, str, dict[str, Any]]  # prompt, completion, columns


@dataclass(frozen=True)
class Guard:
    """How components are called.

    Attributes:
        batch_size: completions of one call; None: all at one time.
        cache_size: texts whose reward is kept; 0 keeps none.
        timeout: seconds for one call; None waits for ever. What runs on in Python cannot be stopped and is left alone.
        on_failure: of a component that raises, runs out of time, or returns None or what is not finite: "stop" raises;
            "replace" takes `failure_value` for the completions concerned, says so, and counts them.
        failure_value: of a completion that has no reward.
    """

    batch_size: int | None = None
    cache_size: int = 0
    timeout: float | None = None
    on_failure: Literal["stop", "replace"] = "stop"
    failure_value: float = 0.0

    def __post_init__(self) -> None:
        if self.on_failure not in ("stop", "replace"):
            raise ValueError(f"on_failure={self.on_failure}: takes stop or replace.")


class GuardedReward:
    """A component under a guard.

    Args:
        name: the component's, for messages.
        reward: the component.
        guard: how it is called.
    """

    def __init__(self, name: str, reward: Reward, guard: Guard) -> None:
        self.name = name
        self.reward = reward
        self.guard = guard
        self._kept: OrderedDict[str, float] = OrderedDict()

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """A reward for each row; None where there is none, which only `on_failure="replace"` lets happen.

        Raises:
            ValueError: the component failed, and the guard says stop.
        """
        if self.guard.cache_size == 0:
            return self._in_batches(rows)
        keys = [_key(row) for row in rows]
        values: dict[str, float | None] = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = list({key: row for key, row in zip(keys, rows, strict=True) if key not in values}.items())
        scores = self._in_batches([row for _, row in fresh])
        values |= {key: score for (key, _), score in zip(fresh, scores, strict=True)}
        self._keep(keys, values)
        return [values[key] for key in keys]

    def kept(self) -> dict[str, float]:
        """Rewards that are kept, by the hash of their text, the oldest first."""
        return dict(self._kept)

    def keep(self, rewards: Mapping[str, float]) -> None:
        """Keep those of an earlier `kept()` and no others."""
        self._kept = OrderedDict(rewards)

    def _keep(self, keys: Sequence[str], values: Mapping[str, float | None]) -> None:
        """The latest `cache_size` rewards; failures are tried again."""
        for key in keys:
            value = values[key]
            if value is not None:
                self._kept[key] = value
                self._kept.move_to_end(key)
        while len(self._kept) > self.guard.cache_size:
            self._kept.popitem(last=False)

    def _in_batches(self, rows: Sequence[Row]) -> list[float | None]:
        size = self.guard.batch_size or max(1, len(rows))
        return [value for start in range(0, len(rows), size) for value in self._batch(rows[start : start + size])]

    def _batch(self, rows: Sequence[Row]) -> list[float | None]:
        """One call, or one for each row where that fails and it is to be told whose fault it is."""
        try:
            values = self._call(rows)
        except Exception as error:  # any reward of anybody
            if self.guard.on_failure == "stop":
                raise ValueError(f"reward {self.name!r} failed: {_reason(error)}") from error
            if len(rows) > 1 and not isinstance(error, TimeoutError):
                return [value for row in rows for value in self._batch([row])]
            self._report(rows, _reason(error))
            return [None] * len(rows)
        return [self._checked(value, row) for value, row in zip(values, rows, strict=True)]

    def _checked(self, value: float | None, row: Row) -> float | None:
        """The reward, if it is a number."""
        if value is not None and math.isfinite(value):
            return float(value)
        if self.guard.on_failure == "stop":
            raise ValueError(
                f"reward {self.name!r} returned {value} for the completion {row[1][:200]!r}; a reward must be a finite "
                "number. reward.on_failure=replace takes reward.failure_value in its place."
            )
        self._report([row], f"it returned {value}")
        return None

    def _report(self, rows: Sequence[Row], reason: str) -> None:
        log.warning(
            "reward %r failed for %d completion(s), which get %g: %s; the first is %r",
            self.name, len(rows), self.guard.failure_value, reason, rows[0][1][:200],
        )  # fmt: skip

    def _call(self, rows: Sequence[Row]) -> list[float | None]:
        """What the component returns for these rows.

        Raises:
            TimeoutError: its time is up.
            ValueError: it returned too few or too many numbers.
        """
        prompts, texts = [row[0] for row in rows], [row[1] for row in rows]
        columns = {name: [row[2][name] for row in rows] for name in rows[0][2]} if rows else {}
        values = list(in_time(lambda: self.reward(prompts=prompts, completions=texts, **columns), self.guard.timeout))
        if len(values) != len(rows):
            raise ValueError(f"it returned {len(values)} numbers for {len(rows)} completions")
        return values


def _key(row: Row) -> str:
    """A short name of a text and its columns."""
    prompt, text, columns = row
    return hashlib.sha256(repr((prompt, text, sorted(columns.items()))).encode("utf-8", "surrogatepass")).hexdigest()


def _reason(error: Exception) -> str:
    """What went wrong; a missing column is told in the user's words."""
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        return f"it needs a column that the rows do not have ({error})"
    return f"{type(error).__name__}: {error}"


def in_time(work: Callable[[], Any], seconds: float | None) -> Any:
    """The result of `work`, or its exception.

    Raises:
        TimeoutError: it is not there within `seconds`.
    """
    if seconds is None:
        warning = threading.Timer(SILENCE, log.warning, (HANGS, SILENCE))
        warning.daemon = True
        warning.start()
        try:
            return work()
        finally:
            warning.cancel()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed on to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if errors:
        raise errors[0]
    return results[0]
