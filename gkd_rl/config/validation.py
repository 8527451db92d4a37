"""Validation of a whole configuration, and descriptions of what a setting takes.

`validate` collects every problem before it raises, so that one attempt shows all of them: missing values, unknown keys,
values out of range, and the contradictions that the rules find. Ranges and choices are read from the schema, which is
also the source of the descriptions. Neither torch nor the classes that the configuration names are imported.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from gkd_rl.config import Config
from gkd_rl.config.model_rules import MODEL_RULES
from gkd_rl.config.rules import OBJECTIVE_RULES
from gkd_rl.config.run_rules import RUN_RULES
from gkd_rl.errors import ConfigError

# --- validation ------------------------------------------------------------------------------------------------------


def validate(config: Config) -> None:
    """Check the whole configuration.

    Raises:
        ConfigError: with one message for every problem.
    """
    problems = list(_unknown_keys(config)) + list(_missing(config))
    if not any(value == MISSING for _, value, _ in _walk(config)):
        for check in (_values, _folder_name, *OBJECTIVE_RULES, *MODEL_RULES, *RUN_RULES):
            problems += check(config)
    if problems:
        raise ConfigError(problems)


def wrong_values(config: Any) -> list[str]:
    """One message for each field of any schema that has no value, or one outside of its range or choices."""
    missing = list(_missing(config))
    return missing or list(_values(config))


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, value and metadata of every field under a dataclass, depth first."""
    for item in fields(node):
        value = getattr(node, item.name)
        yield prefix + item.name, value, dict(item.metadata)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")


def _missing(config: Any) -> Iterator[str]:
    """Settings without a value from a file or an override."""
    for key, value, _ in _walk(config):
        if value == MISSING:
            yield f"{key} has no value: {key} takes {describe_setting(key, type(config))}."


def _unknown_keys(config: Config) -> Iterator[str]:
    """Keys that `+key=value` added beside the schema: `to_object` keeps them as attributes of the dataclass."""
    known = [key for key, _, _ in _walk(config)]
    nodes = [("", config)] + [(f"{key}.", value) for key, value, _ in _walk(config) if is_dataclass(value)]
    for prefix, node in nodes:
        for name in vars(node).keys() - {item.name for item in fields(node)}:
            yield not_a_setting(prefix + name, getattr(node, name), known)


def _values(config: Any) -> Iterator[str]:
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


def _folder_name(config: Config) -> Iterator[str]:
    """`name` is a part of the output folder's path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", config.name):
        yield (
            f"name={config.name} cannot name a folder: name takes up to 80 letters, digits, '.', '_' and '-', "
            "and starts with a letter or digit."
        )


# --- messages about keys ---------------------------------------------------------------------------------------------


def not_a_setting(key: str, value: Any, known: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does.

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


def closest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest known name; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" Did you mean {near[0]}?" if near else ""


# --- descriptions of settings ----------------------------------------------------------------------------------------


def describe_setting(key: str, schema: type = Config) -> str:
    """What a dotted key takes, e.g. 'a number >= 0 and <= 1', 'one of raw, unit', 'text, or null'.

    Returns:
        The description; empty where the schema has no such key.
    """
    found = find_setting(key, schema)
    if found is None:
        return ""
    hint, metadata = found
    names = [_describe_type(one, metadata) for one in _members(hint) if one is not type(None)]
    return " or ".join(names) + (", or null" if type(None) in _members(hint) else "")


def find_setting(key: str, schema: type = Config) -> tuple[Any, dict[str, Any]] | None:
    """Type and field metadata of a dotted key, or None where the schema has no such key.

    Below a free-form mapping (`task`, `reward.components`, `student.architecture`) every key exists.
    """
    hint: Any = schema
    metadata: dict[str, Any] = {}
    for part in key.split("."):
        candidates = [one for one in _members(hint) if is_dataclass(one) or get_origin(one) is dict]
        if not candidates:
            return None if hint is not Any else (Any, {})
        owner = candidates[0]
        if get_origin(owner) is dict:
            hint, metadata = get_args(owner)[1], {}
        elif part in (hints := get_type_hints(owner)):
            hint = hints[part]
            metadata = dict(next(item.metadata for item in fields(owner) if item.name == part))
        else:
            return None
    return hint, metadata


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe_type(hint: Any, metadata: dict[str, Any]) -> str:
    """One type, with the range or the choices of its field."""
    if "choices" in metadata:
        return "one of " + ", ".join(metadata["choices"])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.name for member in hint)
    if is_dataclass(hint):
        return "the settings " + ", ".join(item.name for item in fields(hint))
    if hint in (int, float):
        limits = describe_range(metadata["range"]) if "range" in metadata else ""
        return ("a whole number " if hint is int else "a number ") + limits if limits else "a number"
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        if isinstance(inner, type) and issubclass(inner, Enum):
            return "a list of " + ", ".join(member.name for member in inner)
        items = {int: "whole numbers", float: "numbers"}.get(inner, "names")
        return " ".join(["a list of", items, *([describe_range(metadata["range"])] if "range" in metadata else [])])
    named = {bool: "true or false", str: "text", Any: "any value"}
    return named.get(hint, "a mapping of names to values")


def describe_range(limits: tuple[float, float, bool, bool]) -> str:
    """A numeric range as text, e.g. '>= 0 and <= 1'; empty for a range without bounds."""
    low, high, open_low, open_high = limits
    parts = [f"{'>' if open_low else '>='} {low:g}"] if low > -math.inf else []
    parts += [f"{'<' if open_high else '<='} {high:g}"] if high < math.inf else []
    return " and ".join(parts)
