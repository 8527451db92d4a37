"""Every key of the configuration, walked from the typed schema: its type, its range and its description."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from blocks.comments import CONF, YamlFile, files, read
from gkd_rl.config import Config
from gkd_rl.config.validation import describe_setting

# Files whose comments describe a group's keys, before the group's other files
FIRST = {
    "student": ("checkpoint", "t5_tiny"), "teacher": ("checkpoint", "endpoint", "t5_small"), "adapter": ("lora",),
    "scale": ("embedded", "paper"), "trainer": ("embedded",), "evaluation": ("default",), "divergence": ("jsd",),
    "policy_gradient": ("reinforce", "ppo"), "fixed_data": ("teacher_samples",), "alpha_schedule": ("constant",),
    "tracking": ("wandb",), "rollout": ("sampling",), "reward": ("rouge",), "sft": ("of_scale",),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A leaf of the schema.

    Attributes:
        name: dotted, `trainer.steps`.
        takes: type, range or choices in words.
        field: (name of the class that declares it, name of the field): keys that share both share their description.
    """

    name: str
    takes: str
    field: tuple[str, str]

    @property
    def group(self) -> str:
        """The first part of a dotted key; empty at the top level."""
        first, _, rest = self.name.partition(".")
        return first if rest else ""


@cache
def keys() -> tuple[Key, ...]:
    """Every leaf, in the order of the schema."""
    return tuple(_walk(Config, ""))


def _walk(schema: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(schema)
    for item in fields(schema):
        inner = [one for one in members(hints[item.name]) if is_dataclass(one)]
        if inner:
            yield from _walk(inner[0], f"{prefix}{item.name}.")  # pyright: ignore[reportArgumentType]
            continue
        declared = [one for one in reversed(schema.__mro__) if item.name in getattr(one, "__annotations__", {})]
        name = prefix + item.name
        yield Key(name, describe_setting(name), (declared[0].__name__, item.name))


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def sources() -> Iterator[YamlFile]:
    """Files that describe keys of the schema, the first one wins. Presets and experiments give values only."""
    yield read(CONF / "config.yaml")
    for group, first in FIRST.items():
        named = [read(CONF / group / f"{name}.yaml") for name in first]
        yield from (*named, *(one for one in files(group) if one not in named))


@cache
def descriptions() -> dict[str, str]:
    """Key -> what it does ('' without a comment); keys of one field share a description unless they have their own."""
    by_name: dict[str, str] = {}
    for file in sources():
        for name, text in (file.comments | file.groups).items():
            by_name.setdefault(name, text)
    for name in [name for name in by_name if name.startswith("sft.")]:
        by_name.setdefault(f"scale.{name}", by_name[name])
    by_field: dict[tuple[str, str], str] = {}
    for key in keys():
        if key.name in by_name:
            by_field.setdefault(key.field, by_name[key.name])
    return {key.name: by_name.get(key.name) or by_field.get(key.field, "") for key in keys()}
