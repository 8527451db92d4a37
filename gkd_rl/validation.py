"""Checks over the whole configuration: ranges, leftovers, and the settings that contradict one another.

`validate` collects every problem before it raises, so that one try shows all of them. It reads numbers and names only
and imports neither torch nor the classes that the configuration names.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from gkd_rl.config import Config
from gkd_rl.contradictions import CONTRADICTIONS
from gkd_rl.errors import ConfigError
from gkd_rl.setting_words import describe_setting


def validate(config: Config) -> None:
    """Check the whole configuration.

    Raises:
        ConfigError: with every problem found, one sentence each.
    """
    problems = list(_leftovers(config)) + list(_missing(config))
    if not any(value == MISSING for _, value, _ in _walk(config)):
        for check in (_limits, _names, *CONTRADICTIONS):
            problems += check(config)
    if problems:
        raise ConfigError(problems)


def wrong_values(config: Any) -> list[str]:
    """One sentence for each field of any schema that has no value, or one outside its range or choices."""
    missing = list(_missing(config))
    return missing or list(_limits(config))


def closest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest known name; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" Did you mean {near[0]}?" if near else ""


def not_a_setting(key: str, value: Any, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist, with the nearest one that does.

    Args:
        key: dotted key as typed.
        value: what it was set to.
        known: every dotted key that exists; those beside `key` are listed.
    """
    known = sorted(set(known))
    parent, _, last = key.rpartition(".")
    others = [one for one in known if not key.startswith(one + ".")]
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.75)
    if not near:  # the right name in the wrong place, e.g. learning_rate for trainer.learning_rate
        tails: dict[str, list[str]] = {}
        for one in others:
            tails.setdefault(one.rpartition(".")[2], []).append(one)
        close = difflib.get_close_matches(last, tails, n=1, cutoff=0.8)
        near = sorted(tails[close[0]], key=lambda one: one.count("."))[:2] if close else []
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    prefix = f"{parent}." if parent else ""
    beside = sorted({one.removeprefix(prefix).split(".")[0] for one in known if one.startswith(prefix)})
    if not beside:
        return f"{key}={value} is not a setting.{hint}"
    return f"{key}={value} is not a setting.{hint} {parent or 'The top level'} takes {', '.join(beside)}."


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, value and metadata of every field under a dataclass, depth first."""
    for item in fields(node):
        value = getattr(node, item.name)
        yield prefix + item.name, value, dict(item.metadata)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")


def _leftovers(config: Config) -> Iterator[str]:
    """Keys that `+key=value` put beside the schema: `to_object` leaves them as attributes of the dataclass."""
    known = [key for key, _, _ in _walk(config)]
    nodes = [("", config)] + [(f"{key}.", value) for key, value, _ in _walk(config) if is_dataclass(value)]
    for prefix, node in nodes:
        for name in vars(node).keys() - {item.name for item in fields(node)}:
            yield not_a_setting(prefix + name, getattr(node, name), known)


def _missing(config: Any) -> Iterator[str]:
    """Settings that no file and no override gave a value."""
    for key, value, _ in _walk(config):
        if value == MISSING:
            yield f"{key} has no value: {key} takes {describe_setting(key, type(config))}."


def _limits(config: Any) -> Iterator[str]:
    """Numbers outside the range, and names outside the choices, that their field declares."""
    for key, value, metadata in _walk(config):
        if value is None:
            continue
        if "range" in metadata:
            if not all(_inside(one, metadata["range"]) for one in (value if isinstance(value, list) else [value])):
                yield f"{key}={value} is out of range: {key} takes {describe_setting(key, type(config))}."
        elif "choices" in metadata and value not in metadata["choices"]:
            yield f"{key}={value} is not a choice: {key} takes {describe_setting(key, type(config))}."


def _inside(value: float, limits: tuple[float, float, bool, bool]) -> bool:
    """Whether a number is in a range; NaN and infinity are in none."""
    low, high, open_low, open_high = limits
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    return above and below and math.isfinite(value)


def _names(config: Config) -> Iterator[str]:
    """`name` becomes a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", config.name):
        yield (
            f"name={config.name} cannot name a folder: name takes up to 80 letters, digits, '.', '_' and '-', "
            "and starts with a letter or digit."
        )
