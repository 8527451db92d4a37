"""Result files, and single numbers of them for sentences: `{{ interval methods levels SeqKD rouge2 }}`.

The first word names the function below, the second the file under experiments/results (without .json), the others the
keys down to the number; a key with spaces stands in quotation marks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from gkd_rl.outputs.tables import Estimate

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
LABEL = "difference"  # of the only effect of a claim


@cache
def load(name: str) -> Any:
    """A result file, e.g. `paper/walk`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def at(name: str, *keys: str) -> Any:
    """What stands in a result file under some keys.

    Raises:
        KeyError: with the keys that there are instead.
    """
    node = load(name)
    for key in keys:
        if isinstance(node, list):
            node = node[int(key)]
        elif key in node:
            node = node[key]
        else:
            raise KeyError(f"{name}.json has no {' > '.join(keys)}: {key!r} is not one of {list(node)}")
    return node


def shown(entry: Mapping[str, Any]) -> str:
    """`mean [low, high]`; a dash where nothing was measured."""
    return str(Estimate(*(entry[key] for key in ("mean", "low", "high", "n")))) if entry["n"] else "-"


def shown_change(entry: Mapping[str, Any]) -> str:
    """`mean [low, high] (seeds up/seeds)`."""
    return f"{shown(entry)} ({sum(value > 0 for value in entry['by_seed'].values())}/{entry['n']})"


def plain(value: float) -> str:
    """Three significant digits, no exponent and no zeros at the end: 0.0147 -> 0.015, 27.03 -> 27.0."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """A Markdown table; `right` aligns all columns but the first to the right."""
    rule = ["---", *["---:" if right else "---"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *rows))


def claim(study: str, start: str) -> dict[str, Any]:
    """The claim of a study of the paper whose text begins with `start`.

    Raises:
        KeyError: none or several begin so.
    """
    claims = load(f"paper/{study}")["claims"]
    found = [one for one in claims if one["claim"].startswith(start)]
    if len(found) != 1:
        raise KeyError(f"paper/{study}.json: {len(found)} claims begin with {start!r}: {[c['claim'] for c in claims]}")
    return found[0]


def _interval(name: str, *keys: str) -> str:
    return shown(at(name, *keys))


def _change(name: str, *keys: str) -> str:
    return shown_change(at(name, *keys))


def _mean(name: str, *keys: str) -> str:
    return shown(at(name, *keys)).split(" ")[0]


def _seed(name: str, *keys: str) -> str:
    """One seed's number: the last key is the seed."""
    return plain(at(name, *keys[:-1])["by_seed"][keys[-1]])


def _seeds(name: str, *keys: str) -> str:
    """Every seed's number, in the order of the seeds."""
    return ", ".join(plain(value) for value in at(name, *keys)["by_seed"].values())


def _span(name: str, *keys: str) -> str:
    """The smallest and the largest number of any seed."""
    values = at(name, *keys)["by_seed"].values()
    return f"{plain(min(values))} to {plain(max(values))}"


def _up(name: str, *keys: str) -> str:
    """In how many seeds a difference is positive, `5 of 5`."""
    entry = at(name, *keys)
    return f"{sum(value > 0 for value in entry['by_seed'].values())} of {entry['n']}"


def _down(name: str, *keys: str) -> str:
    """In how many seeds a difference is negative."""
    entry = at(name, *keys)
    return f"{sum(value < 0 for value in entry['by_seed'].values())} of {entry['n']}"


def _number(name: str, *keys: str) -> str:
    value = at(name, *keys)
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else plain(value)


def _effect(study: str, start: str, label: str = "") -> str:
    """An effect of a claim, with its interval; without a label the first one."""
    effects = claim(study, start)["effects"]
    return shown(effects[label or next(iter(effects))])


def _verdict(study: str, start: str) -> str:
    return claim(study, start)["verdict"]


def _recorded(name: str) -> str:
    """A measurement without a result file of its own, see experiments/results/recorded.json."""
    return at("recorded", name, "value")


def _median(name: str, *keys: str) -> str:
    """The median over seeds."""
    return plain(median(at(name, *keys)["by_seed"].values()))


def _minutes(name: str, *keys: str) -> str:
    """Seconds as `7 min 52 s`."""
    return clock(at(name, *keys))


def _hours(name: str, *keys: str) -> str:
    """Seconds as hours, `3.2`."""
    return f"{at(name, *keys) / 3600:.1f}"


def clock(seconds: float) -> str:
    """`7 min 52 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


FUNCTIONS: dict[str, Callable[..., str]] = {
    "interval": _interval, "change": _change, "mean": _mean, "seed": _seed, "seeds": _seeds, "span": _span, "up": _up,
    "down": _down, "number": _number, "effect": _effect, "verdict": _verdict, "recorded": _recorded, "median": _median,
    "minutes": _minutes, "hours": _hours,
}  # fmt: skip


def value(text: str) -> str:
    """What `{{ text }}` stands for.

    Raises:
        KeyError: there is no such function, file or key.
    """
    name, *arguments = shlex.split(text)
    if name not in FUNCTIONS:
        raise KeyError(f"{{{{ {text} }}}}: {name} is not one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name](*arguments)
