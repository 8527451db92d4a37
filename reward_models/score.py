"""Score existing texts with a reward: `python -m reward_models.score --reward rouge --file rows.jsonl`.

Each line of the file is a JSON object with a completion and the columns that the reward needs (prompt, reference, ...).
The command prints the means, and writes the rewards of each row to `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reward_models.composite import Composite, Scores
from reward_models.targets import ALLOWED_PACKAGES, find_targets, refusal


def reward_files() -> Path:
    """The folder conf/reward: inside the installed gkd_rl, or beside the packages in a checkout."""
    root = Path(__file__).resolve().parents[1]
    return next(folder for folder in (root / "gkd_rl" / "conf" / "reward", root / "conf" / "reward") if folder.is_dir())


def load_reward(name: str, changes: Sequence[str] = ()) -> Composite:
    """The reward that a YAML file describes.

    Args:
        name: of a file in conf/reward, or a path that ends in .yaml.
        changes: KEY=VALUE over the settings of the file, e.g. "components.rouge.kind=rouge1".

    Raises:
        ValueError: there is no such file, it does not describe a reward, or it names code that is not trusted.
    """
    own = Path(name)
    file = own if own.suffix == ".yaml" else reward_files() / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(one.stem for one in reward_files().glob("*.yaml") if one.stem != "none"))
        raise ValueError(f"--reward {name}: there is no {file}; it takes one of {names}, or a YAML file.")
    if unknown := [change for change in changes if "=" not in change]:
        raise ValueError(f"{unknown[0]}: a setting is KEY=VALUE, e.g. components.rouge.kind=rouge1.")
    try:
        loaded = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(list(changes)))
        settings: Any = OmegaConf.to_container(loaded, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"--reward {name}: {error.full_key}: {error.msg}; add KEY=VALUE for it.") from error
    components, weights = settings.get("components"), settings.get("weights")
    if not components or not weights:
        raise ValueError(f"--reward {name}: {file} has no components with weights.")
    for key, node in components.items():
        targets = dict(find_targets(node, f"components.{key}")) or {f"components.{key}._target_": None}
        for setting, target in targets.items():
            if refusal(setting, target) is not None:
                raise ValueError(f"--reward {name}: {setting} takes a class of {' or '.join(ALLOWED_PACKAGES)}.")
    try:
        built = {key: instantiate(node, _convert_="all") for key, node in components.items()}
    except InstantiationException as error:
        raise ValueError(f"--reward {name}: {error.__cause__ or error}") from error
    return Composite(built, weights)


def read_rows(file: Path, completion: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, which all have the same columns.

    Args:
        file: the file.
        completion: column of the text that is scored.

    Raises:
        ValueError: the file is missing or empty, or a row is invalid or has other columns; the message has its number.
    """
    if not file.is_file():
        raise ValueError(f"--file {file}: there is no such file.")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"--file {file}, row {number}: it is not JSON in UTF-8 ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get(completion), str):
            raise ValueError(f"--file {file}, row {number}: it takes a JSON object with a text in {completion!r}.")
        if rows and row.keys() != rows[0].keys():
            raise ValueError(f"--file {file}, row {number}: its columns differ from those of row 1.")
        rows.append(row)
    if not rows:
        raise ValueError(f"--file {file}: it has no rows.")
    return rows


def score_rows(reward: Composite, rows: Sequence[dict[str, Any]], completion: str, batch_size: int) -> Scores:
    """Rewards of N rows, computed `batch_size` at a time.

    Args:
        reward: the reward.
        rows: N dicts.
        completion: column of the text that is scored.
        batch_size: rows in one call of the reward.

    Raises:
        ValueError: a component of the reward failed.
    """
    total: list[float] = []
    components: dict[str, list[float]] = {name: [] for name in reward.components}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        columns = {name: [row[name] for row in batch] for name in batch[0] if name not in ("prompt", completion)}
        prompts, texts = [str(row.get("prompt", "")) for row in batch], [row[completion] for row in batch]
        scores = reward(prompts, texts, **columns)
        total += scores.total
        for name, values in scores.components.items():
            components[name] += values
    return Scores(total, components)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a file, print the means, write the rows to `--out`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reward_models.score", description="Score texts with a reward.")
    parser.add_argument("--reward", required=True, help="a name in conf/reward, or a YAML file")
    parser.add_argument("--file", required=True, type=Path, help="JSON lines")
    parser.add_argument("--completion", default="completion", help="column of the text that is scored")
    parser.add_argument("--batch-size", default=64, type=int)
    parser.add_argument("--out", type=Path, help="JSON lines with the rewards of each row")
    parser.add_argument(
        "settings", nargs="*", help="KEY=VALUE over the settings of the file, e.g. components.rouge.kind=rouge1"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.batch_size < 1:
            raise ValueError(f"--batch-size {options.batch_size}: takes a whole number >= 1.")
        rows = read_rows(options.file, options.completion)
        scores = score_rows(load_reward(options.reward, options.settings), rows, options.completion, options.batch_size)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    means = {"reward": scores.total} | scores.components
    print(f"{len(rows)} rows")  # noqa: T201
    for name, values in means.items():
        print(f"{name:<24}{sum(values) / len(values):.4f}")  # noqa: T201
    if options.out is not None:
        lines = (
            json.dumps({"reward": scores.total[i]} | {name: values[i] for name, values in scores.components.items()})
            for i in range(len(rows))
        )
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
