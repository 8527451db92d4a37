"""Protection around expensive or unreliable work: calls of a reward, and entries of a cache on disk.

`GuardedReward` calls one reward in batches, caches its results in memory by text, limits the time of a call, and turns
failures into an error or a replacement value as `Guard` says. `entry_lock` lets one of several processes make an entry
of a cache on disk while the others wait.
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

SLOW_CALL = 300.0  # seconds after which a call without a time limit is reported in the log
Reward = Callable[..., Sequence[float | None]]
Row = tuple[str, str, dict[str, Any]]  # prompt, completion, columns


@dataclass(frozen=True)
class Guard:
    """How the components of a reward are called.

    Attributes:
        batch_size: completions in one call; None: all in one call.
        cache_size: rewards kept in memory, the least recently used is dropped first; 0 keeps none.
        timeout: seconds for one call; None: no limit. A Python call that runs out of time cannot be stopped: its thread
            runs on in the background.
        on_failure: what follows a call that raises, runs out of time, or returns None or a value that is not finite:
            "stop" raises; "replace" scores the completions concerned with `failure_value`, logs it and counts them.
        failure_value: reward of a completion whose reward failed.

    Raises:
        ValueError: `on_failure` is neither "stop" nor "replace".
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
    """One reward called under a `Guard`.

    Args:
        name: name of the component, for messages.
        reward: the component.
        guard: how it is called.
    """

    def __init__(self, name: str, reward: Reward, guard: Guard) -> None:
        self.name = name
        self.reward = reward
        self.guard = guard
        self._cache: OrderedDict[str, float] = OrderedDict()

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """One reward for each of B rows; None for a failure, which only `on_failure="replace"` permits.

        Raises:
            ValueError: the component failed and `on_failure` is "stop".
        """
        if self.guard.cache_size == 0:
            return self._in_batches(rows)
        keys = [_key(row) for row in rows]
        values: dict[str, float | None] = {key: self._cache[key] for key in keys if key in self._cache}
        fresh = list({key: row for key, row in zip(keys, rows, strict=True) if key not in values}.items())
        scores = self._in_batches([row for _, row in fresh])
        values |= {key: score for (key, _), score in zip(fresh, scores, strict=True)}
        self._update_cache(keys, values)
        return [values[key] for key in keys]

    def cached(self) -> dict[str, float]:
        """Cached rewards by the hash of their row, the oldest first."""
        return dict(self._cache)

    def restore(self, rewards: Mapping[str, float]) -> None:
        """Replace the cache by an earlier `cached()`."""
        self._cache = OrderedDict(rewards)

    def _update_cache(self, keys: Sequence[str], values: Mapping[str, float | None]) -> None:
        """Keep the latest `cache_size` rewards; failures are not cached, so that they are computed again."""
        for key in keys:
            value = values[key]
            if value is not None:
                self._cache[key] = value
                self._cache.move_to_end(key)
        while len(self._cache) > self.guard.cache_size:
            self._cache.popitem(last=False)

    def _in_batches(self, rows: Sequence[Row]) -> list[float | None]:
        size = self.guard.batch_size or max(1, len(rows))
        return [value for start in range(0, len(rows), size) for value in self._batch(rows[start : start + size])]

    def _batch(self, rows: Sequence[Row]) -> list[float | None]:
        """One call; if it fails under "replace", one call for each row, to find the rows that fail."""
        try:
            values = self._call(rows)
        except Exception as error:  # a reward may raise anything
            if self.guard.on_failure == "stop":
                raise ValueError(f"reward {self.name!r} failed: {_reason(error)}") from error
            if len(rows) > 1 and not isinstance(error, TimeoutError):
                return [value for row in rows for value in self._batch([row])]
            self._report(rows, _reason(error))
            return [None] * len(rows)
        return [self._checked(value, row) for value, row in zip(values, rows, strict=True)]

    def _checked(self, value: float | None, row: Row) -> float | None:
        """The reward if it is finite, else a failure."""
        if value is not None and math.isfinite(value):
            return float(value)
        if self.guard.on_failure == "stop":
            raise ValueError(
                f"reward {self.name!r} returned {value} for the completion {row[1][:200]!r}; a reward must be a finite "
                "number. reward.on_failure=replace uses reward.failure_value in its place."
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
            TimeoutError: the call took longer than the time limit.
            ValueError: it returned another number of rewards than there are rows.
        """
        prompts, texts = [row[0] for row in rows], [row[1] for row in rows]
        columns = {name: [row[2][name] for row in rows] for name in rows[0][2]} if rows else {}

        def work() -> Sequence[float | None]:
            return self.reward(prompts=prompts, completions=texts, **columns)

        values = list(call_with_timeout(work, self.guard.timeout))
        if len(values) != len(rows):
            raise ValueError(f"it returned {len(values)} numbers for {len(rows)} completions")
        return values


def call_with_timeout(work: Callable[[], Any], seconds: float | None) -> Any:
    """The result of `work()`, or its exception.

    Without a limit the call is waited for, and a warning is logged after `SLOW_CALL` seconds.

    Raises:
        TimeoutError: `work` did not return within `seconds`.
    """
    if seconds is None:
        message = "a reward has not returned after %g seconds and is still waited for; reward.timeout=SECONDS limits it"
        warning = threading.Timer(SLOW_CALL, log.warning, (message, SLOW_CALL))
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
        except BaseException as error:  # raised again in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"it did not return within {seconds:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


def _key(row: Row) -> str:
    """SHA-256 of a prompt, its completion and its columns."""
    prompt, text, columns = row
    return hashlib.sha256(repr((prompt, text, sorted(columns.items()))).encode("utf-8", "surrogatepass")).hexdigest()


def _reason(error: Exception) -> str:
    """The exception in one line; a missing argument of the reward is a missing column of the rows."""
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        return f"it needs a column that the rows do not have ({error})"
    return f"{type(error).__name__}: {error}"


@contextmanager
def entry_lock(entry: Path) -> Iterator[None]:
    """Hold the lock of a cache entry, so that one process makes it while the others wait.

    The caller checks again for the entry once the lock is held. It is a kernel lock (flock), which ends with its
    process, however that dies; the lock file remains.

    Args:
        entry: a folder that may not exist yet; its lock is the file beside it with the suffix `.lock`.
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
