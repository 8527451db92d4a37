"""What is wrong with a sweep as a whole: plugins that are not installed, directions, the ends of what is searched."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, ListConfig

from gkd_rl.config import Config


def missing_plugins(hydra: DictConfig) -> Iterator[str]:
    """Launchers and sweepers of packages that are not installed."""
    for part in ("launcher", "sweeper"):
        package, _, rest = str(hydra[part]._target_).partition(".")
        plugin = rest.partition(".")[0]
        if package == "hydra_plugins" and not (find_spec(package) and find_spec(f"{package}.{plugin}")):
            extra = plugin.removeprefix("hydra_").rpartition("_")[0]
            chosen = hydra.runtime.choices[f"hydra/{part}"]
            yield f'hydra/{part}={chosen} needs {plugin}, which is not installed: pip install "gkd_rl[{extra}]".'


def directions(hydra: DictConfig, configs: list[Config]) -> Iterator[str]:
    """A sweeper that searches takes one direction for each objective."""
    if not configs or "direction" not in hydra.sweeper:
        return
    given, names = hydra.sweeper.direction, configs[0].sweep.objectives
    count = len(given) if isinstance(given, ListConfig) else 1
    if count != len(names):
        directions = ",".join(["maximize"] * len(names))
        yield (
            f"hydra.sweeper.direction={given} is {count} of them for {len(names)} objectives (sweep.objectives="
            f"{names}): give each its own, e.g. 'hydra.sweeper.direction=[{directions}]'."
        )


def ends(swept: list[Override]) -> list[list[str]]:
    """Two jobs of a search: the first or lowest value of everything that is searched, and the last or highest.

    Args:
        swept: of the sweeper's parameters and of the command line; a later one wins.
    """
    found: dict[str, tuple[str, str]] = {}
    for one in swept:
        value = one.value()
        if isinstance(value, IntervalSweep):
            low, high = str(value.start), str(value.end)
        elif one.is_sweep_override():
            values = list(one.sweep_string_iterator())
            low, high = values[0], values[-1]
        else:
            low = high = one.get_value_element_as_str()
        found[one.get_key_element()] = (low, high)
    return [[f"{key}={pair[end]}" for key, pair in found.items()] for end in (0, 1)]
