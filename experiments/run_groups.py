"""Which settings tell runs apart, and the words a group of runs is called by.

Runs are of one group when all their settings agree but the seed, what follows it, and what cannot change a number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

SEED = "seed"
NAME = "name"
METHOD = ("alpha", "lmbda", "divergence.name", "divergence.beta", "divergence.skew")  # what labels never leave out
MANY = 4  # settings that a label names before it leaves out the usual ones
TRIVIAL = ("cache_dir", "save_model", "threads", "notice", "log_every", "samples_per_log", "memory_gib")
TRIVIAL_PARTS = ("tracking", "hydra")
Settings = Mapping[str, Any]


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"trainer": {"steps": 3}} -> {"trainer.steps": 3}; an empty mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(dotted(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value})
    return flat


def differing_settings(runs: Sequence[Settings]) -> dict[str, tuple[Any, ...]]:
    """Dotted key -> distinct values in the order of the runs, for the settings that differ.

    Left out are the seed, keys that are the seed in every run (student.seed), and what cannot change a number: names,
    caches, logging, tracking. A key that a run does not have counts as None.
    """
    keys = dict.fromkeys(key for settings in runs for key in settings)
    found = {key: distinct([settings.get(key) for settings in runs]) for key in keys if not _is_trivial(key)}
    return {key: values for key, values in found.items() if len(values) > 1 and not _is_seed(key, runs)}


def distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    """Values without repetition, in the order of their first places; 1 and 1.0 are one, 1 and true are two."""
    return tuple(
        {_identity(value): value for value in reversed(values)}[key] for key in dict.fromkeys(map(_identity, values))
    )


def labels(runs: Sequence[Settings], typed: Collection[str] = ()) -> list[str]:
    """One label a run, equal for the runs of a group and for no others: `alpha=0.5 divergence=jsd`, `xsum_rl alpha=1`.

    All differing settings tell the groups apart; a label says only what is needed for it: the runs' names where these
    follow the groups, then settings that the user typed, then the shallow ones. Of more than `MANY` it leaves out what
    most groups share, but for the method's own: to say nothing of a setting means that one.

    Args:
        runs: dotted settings of each run.
        typed: dotted keys that stand in the overrides of a run, which are preferred.
    """
    different = list(differing_settings(runs))
    wanted = _parts(runs, different)
    keys = sorted(different, key=lambda key: (key not in typed, key.count("."), different.index(key)))
    needed = [NAME] if _parts(runs, [NAME]) > 1 and _parts(runs, [NAME, *different]) == wanted else []
    for key in keys:
        if _parts(runs, [*needed, key]) > _parts(runs, needed):
            needed.append(key)
    for key in [one for one in needed if one != NAME]:  # a later one can make an earlier one needless
        if _parts(runs, rest := [one for one in needed if one != key]) == wanted:
            needed = rest
    usual = _usual(runs, needed) if len(needed) > MANY else {}
    said = [[key for key in needed if key not in usual or _identity(one.get(key)) != usual[key]] for one in runs]
    return [
        " ".join(_word(key, one.get(key)) for key in keys) or "all runs" for one, keys in zip(runs, said, strict=True)
    ]


def _usual(runs: Sequence[Settings], needed: Sequence[str]) -> dict[str, str]:
    """Setting -> its value in more than half of the groups, where there is one."""
    groups = {tuple(_identity(settings.get(key)) for key in needed) for settings in runs}
    found = {}
    for key, values in zip(needed, zip(*groups, strict=True), strict=True):
        (value, count) = Counter(values).most_common(1)[0]
        if count > len(groups) / 2 and key not in (NAME, *METHOD):
            found[key] = value
    return found


def shown_setting(value: Any) -> str:
    """A setting as it is typed: 0.5, null, [a,b]."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _parts(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    """How many groups these keys tell apart."""
    return len({tuple(_identity(settings.get(key)) for key in keys) for settings in runs})


def _word(key: str, value: Any) -> str:
    """`alpha=0.5`; `divergence=jsd` for divergence.name, as it is chosen on the command line; a name is itself."""
    return shown_setting(value) if key == NAME else f"{key.removesuffix('.name')}={shown_setting(value)}"


def _identity(value: Any) -> str:
    """Equal for equal settings."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def _is_trivial(key: str) -> bool:
    """Whether a setting cannot change a number, or is the seed itself."""
    parts = key.split(".")
    return key in (SEED, NAME) or parts[-1] in TRIVIAL or parts[0] in TRIVIAL_PARTS


def _is_seed(key: str, runs: Sequence[Settings]) -> bool:
    """Whether a setting follows the seed."""
    return key.endswith(f".{SEED}") and all(settings.get(key) in (None, settings.get(SEED)) for settings in runs)
