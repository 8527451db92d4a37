"""The configuration reference: every key of the schema, of the tasks and of the rewards, with its default by scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from blocks.comments import CONF, YamlFile, files, read
from blocks.schema import Key, descriptions, keys
from blocks.targets import target
from blocks.values import table
from gkd_rl.config import Config

SCALES = ("embedded", "single_gpu", "paper")
ABSENT = object()
TOP = "The run"
_SPECIAL = re.compile(r"[\\*_\[\]<>|`]")
_CODE = re.compile(r"`[^`]*`|\b(?!e\.g\b)[a-z_]+(?:\.[a-z_]+)+(?:=\w+)?\b|\b(?:lmbda|alpha)\b|\b[a-z_]+=[\w.]+")
CHOICES = ("student", "adapter", "teacher", "reward", "trainer", "evaluation")


@cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line."""
    ConfigStore.instance().store(name="schema", node=Config)  # as gkd_rl.run does
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(overrides))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def at_scale(scale: str, task: str, *overrides: str) -> DictConfig:
    """A task at a scale."""
    return composed(f"scale={scale}", f"task={task}", *overrides)


def look_up(config: DictConfig, key: str) -> Any:
    """A value; ABSENT where a part above it is null, `???` where it has to be given."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return ABSENT
        if OmegaConf.is_missing(node, part):
            return "???"
        node = node[part]
    return node


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is ABSENT:
        return "–"
    if value == "???":
        return "required"
    if isinstance(value, DictConfig | Mapping):
        return "a mapping" if value else "`{}`"
    if OmegaConf.is_list(value):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    text = value.name if hasattr(value, "name") else f"{value:g}" if isinstance(value, float) else str(value)
    text = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{text}`" if text and len(text) <= 60 else '`""`' if not text else f"`{text[:57]}...`"


def by_scale(key: str, task: str = "xsum") -> str:
    """The default at each scale; once where they agree, and of a key that is off by default where it is set."""
    found = {scale: look_up(at_scale(scale, task), key) for scale in SCALES if (scale, task) in presets()}
    given = {scale: shown(value) for scale, value in found.items()}
    if set(given.values()) == {"–"}:
        return _elsewhere(key)
    if len(set(given.values())) == 1:
        return next(iter(given.values()))
    return "<br>".join(f"{scale}: {text}" for scale, text in given.items())


def _elsewhere(key: str) -> str:
    """A key that no default has: what the choices of its group give it, `ppo: 64`."""
    group = key.partition(".")[0]
    for file in files(group) if (CONF / group).is_dir() else []:
        if key in file.keys:
            overrides = ["alpha=1", "lmbda=0"] if file.path.stem == "endpoint" else []
            value = look_up(composed(f"{group}={file.path.stem}", *overrides), key)
            return f"{group}={file.path.stem}: {shown(value)}"
    return "–"


@cache
def presets() -> dict[tuple[str, str], dict[str, str]]:
    """(scale, task) -> what the preset chooses, group by group."""
    found = {}
    for path in sorted((CONF / "preset").glob("*/*.yaml")):
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))["defaults"]
        chosen = {name.lstrip("/"): choice for one in lines if isinstance(one, dict) for name, choice in one.items()}
        found[path.parent.name, path.stem] = chosen
    return found


def prose(text: str) -> str:
    """A description as Markdown: settings and file names as code, everything else as it is."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [escaped(text[end : match.start()]), f"`{match.group().strip('`')}`"]
        end = match.end()
    return "".join([*parts, escaped(text[end:])])


def escaped(text: str) -> str:
    """Text without characters that Markdown acts on; alternatives are separated by commas."""
    return _SPECIAL.sub(lambda match: f"\\{match.group()}", text.replace(" | ", ", "))


def limits(takes: str) -> str:
    """Ranges with mathematical signs."""
    return takes.replace(">=", "≥").replace("<=", "≤").replace(">", "\\>").replace("<", "\\<")


def _row(name: str, takes: str, default: str, does: str, anchor: str = "") -> list[str]:
    return [f'<span id="{anchor or name}"></span>`{name}`', limits(takes), default, prose(does)]


def rows_of(group: Iterable[Key]) -> str:
    """A table of keys of the schema."""
    does = descriptions()
    return _table([_row(key.name, key.takes, by_scale(key.name), does[key.name]) for key in group])


def _table(rows: list[list[str]]) -> str:
    """A table of keys; on a narrow screen its rows are drawn as blocks (stylesheets/extra.css)."""
    cells = table(["key", "takes", "default", "what it does"], rows)
    return f'<div class="settings" markdown>\n\n{cells}\n\n</div>'


def schema() -> str:
    """Every key of the schema, a section for each group."""
    parts = []
    does = read(CONF / "config.yaml").groups
    for group in dict.fromkeys(key.group for key in keys()):
        parts += [f"## {group or TOP}"]
        if group in does:
            parts += [prose(f"{does[group][:1].upper()}{does[group][1:]}.")]
        if group and (CONF / group).is_dir():
            parts += [choices(group)]
        parts += [rows_of(key for key in keys() if key.group == group)]
    return "\n\n".join(parts)


def choices(group: str) -> str:
    """`GROUP=CHOICE`: the files of a group and what they say of themselves."""
    rows = [[f"`{group}={file.path.stem}`", prose(file.head)] for file in files(group)]
    return table(["choice", ""], rows)


def free_keys(file: YamlFile) -> dict[str, tuple[str, str]]:
    """Key -> what it takes, what it does: of a task's or reward's file, whose keys are arguments of a `_target_`."""
    found = {}
    tree = yaml.safe_load(file.path.read_text(encoding="utf-8"))
    for name in file.keys:
        parts = name.removeprefix(file.package).split(".")
        if parts[-1] in ("_target_", "_partial_") or name in descriptions():
            continue
        if parts[0] == "weights":
            continue
        takes, does = _argument(tree, parts)
        found[name] = takes, file.comments.get(name) or does
    return found


def _argument(tree: Any, parts: list[str]) -> tuple[str, str]:
    """Type and description of the argument that the innermost `_target_` above a key has for it."""
    node, owner, depth = tree, None, 0
    for index, part in enumerate(parts[:-1]):
        if isinstance(node, dict) and "_target_" in node:
            owner, depth = node["_target_"], index
        node = node[part]
    if isinstance(node, dict) and "_target_" in node:
        owner, depth = node["_target_"], len(parts) - 1
    value = node[parts[-1]]
    if owner is None or not str(owner).startswith(("gkd_rl.", "reward_models.")):
        return _kind(value), ""
    known, name = target(owner), parts[depth]
    if depth < len(parts) - 1:  # below a mapping that is one argument
        return _kind(value), known.does.get(name, "")
    return known.takes.get(name, _kind(value)), known.does.get(name, "")


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "any value")


def tasks() -> str:
    """Keys below `task`, a section for each file."""
    parts = []
    for file in files("task"):
        name = file.path.stem
        rows = [
            _row(key, takes, by_scale(key, name), does, f"{name}.{key}")
            for key, (takes, does) in free_keys(file).items()
        ]
        scales = ", ".join(f"`scale={scale}`" for scale in SCALES if (scale, name) in presets())
        parts += [f"## task={name}", f"{prose(file.head)} At {scales}.", _table(rows)]
    return "\n\n".join(parts)


def rewards() -> str:
    """Keys below `reward.components`, a section for each file."""
    parts = []
    for file in files("reward"):
        config = yaml.safe_load(file.path.read_text(encoding="utf-8"))
        weights = ", ".join(f"`{name}` {weight:g}" for name, weight in config["weights"].items()) or "none"
        parts += [f"## reward={file.path.stem}", f"{prose(file.head)} Weights: {weights}."]
        found = free_keys(file)
        rows = [
            _row(key, takes, shown(_value(config, key, file)), does, f"{file.path.stem}.{key}")
            for key, (takes, does) in found.items()
        ]
        parts += [_table(rows)] if rows else []
    return "\n\n".join(parts)


def _value(tree: Any, key: str, file: YamlFile) -> Any:
    for part in key.removeprefix(file.package).split("."):
        tree = tree[part]
    return str(tree) if isinstance(tree, list) else tree


def benchmark() -> str:
    """Settings of `gkd_rl.evaluate`."""
    file = read(CONF / "benchmark.yaml")
    config = yaml.safe_load(file.path.read_text(encoding="utf-8"))
    rows = [[f"`{key}`", shown(_value(config, key, file)), prose(file.comments.get(key, ""))] for key in file.keys]
    return table(["key", "default", "what it does"], rows)


def scales() -> str:
    """What each preset chooses for a task at a scale."""
    rows = [
        [f"`task={task}`", f"`{scale}`", *(f"`{chosen.get(name, '–')}`" for name in CHOICES)]
        for (scale, task), chosen in sorted(presets().items(), key=lambda one: (one[0][1], SCALES.index(one[0][0])))
    ]
    return table(["task", "scale", *CHOICES], rows)


def experiments() -> str:
    """The choices of `experiment=`."""
    return choices("experiment")
