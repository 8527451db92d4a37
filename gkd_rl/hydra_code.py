"""Code that Hydra's own settings name: launchers, sweepers, callbacks and the classes of a log.

Hydra calls these before a run begins, so that an experiment file of somebody else could run anything by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from gkd_rl.config import Config
from reward_models.targets import find_targets, is_written

PACKAGES = ("hydra", "hydra_plugins", "gkd_rl", "logging", "colorlog", "optuna")
PLACES = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def foreign_code(node: DictConfig, configs: Sequence[Config]) -> Iterator[str]:
    """One sentence for each setting under `hydra` that names code of another package, or anything by `ext://`.

    Args:
        node: Hydra's own settings.
        configs: the jobs, whose `trusted_packages` are taken too.
    """
    trusted = {package for config in configs for package in config.trusted_packages}
    for place in PLACES:
        settings = OmegaConf.to_container(node[place], resolve=False) if node.get(place) is not None else {}
        for key, target in find_targets(settings, f"hydra.{place}", ("_target_", "class", "()")):
            package = str(target).split(".")[0]
            if package not in trusted and not (package in PACKAGES and (_absent(target) or is_written(str(target)))):
                yield (
                    f"{key}={target} names code that is not taken from settings: it takes a class of "
                    f"{', '.join(PACKAGES)}, or of a package that trusted_packages names."
                )
        yield from _external(settings, f"hydra.{place}")


def _absent(target: str) -> bool:
    """A plugin of Hydra that is not installed is told elsewhere, with what to install."""
    parts = str(target).split(".")
    if parts[0] != "hydra_plugins" or len(parts) < 3:
        return False
    return find_spec(parts[0]) is None or find_spec(".".join(parts[:2])) is None


def _external(node: object, key: str) -> Iterator[str]:
    """Texts that the configuration of a log takes for names of objects."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(child, str) and child.startswith("ext://") and child not in STREAMS:
            yield f"{key}.{name}={child} is refused: it takes {' or '.join(STREAMS)}."
        yield from _external(child, f"{key}.{name}")
