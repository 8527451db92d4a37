"""What a setting takes, in words, read from the schema: the one source of every message about a wrong value."""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from gkd_rl.config import Config


def describe_range(limits: tuple[float, float, bool, bool]) -> str:
    """Words for a numeric range, e.g. '>= 0 and <= 1'; empty for one without ends."""
    low, high, open_low, open_high = limits
    parts = [f"{'>' if open_low else '>='} {low:g}"] if low > -math.inf else []
    parts += [f"{'<' if open_high else '<='} {high:g}"] if high < math.inf else []
    return " and ".join(parts)


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


def describe_setting(key: str, schema: type = Config) -> str:
    """What a dotted key takes, in words: 'a number >= 0 and <= 1', 'one of raw, unit', 'text, or null'.

    Returns:
        The description; empty where the schema has no such key.
    """
    found = find_setting(key, schema)
    if found is None:
        return ""
    hint, metadata = found
    names = [_describe_type(one, metadata) for one in _members(hint) if one is not type(None)]
    return " or ".join(names) + (", or null" if type(None) in _members(hint) else "")


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
        words = {int: "whole numbers", float: "numbers"}.get(inner, "names")
        return " ".join(["a list of", words, *([describe_range(metadata["range"])] if "range" in metadata else [])])
    named = {bool: "true or false", str: "text", Any: "any value"}
    return named.get(hint, "a mapping of names to values")
