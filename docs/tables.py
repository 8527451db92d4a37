"""Numbers of README.md and of the site come from result files, by name; nobody types them.

    python docs/tables.py                      # rewrites README.md
    python docs/tables.py --check              # fails with a diff where README.md is not what the result files give
    python docs/tables.py --first-run FOLDER   # takes README's first table from a run's folder

A page has `<!-- table:NAME ARGUMENTS -->` and `<!-- /table -->` around a block, `{{ NAME ARGUMENTS }}` in sentences.
README.md holds the text of its blocks; pages of the site get theirs when it is built (hooks.py).
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blocks import front, modules, results, settings, speed
from blocks.values import RESULTS, ROOT, value

BLOCKS: dict[str, Callable[..., str]] = {
    **front.BLOCKS,
    "alpha-levels": results.alpha_levels,
    "alpha-changes": results.alpha_changes,
    "families": results.families,
    "first-run": results.first_run,
    "methods": results.methods,
    "method-changes": results.method_changes,
    "method-claims": results.method_claims,
    "own-claims": results.own_claims,
    "statements": results.statements,
    "statement-details": results.statement_details,
    "study": results.study,
    "walk-by-student": results.walk_by_student,
    "soak": results.soak,
    "kills": results.kills,
    "speed-cpu": speed.cpu,
    "speed-cpu-steps": speed.cpu_steps,
    "speed-gpu": speed.gpu,
    "speed-gpu-head": speed.gpu_head,
    "speed-linear": speed.linear,
    "speed-machines": speed.machines,
    "speed-memory": speed.memory,
    "modules": modules.modules,
    "settings": settings.schema,
    "task-settings": settings.tasks,
    "reward-settings": settings.rewards,
    "benchmark-settings": settings.benchmark,
    "presets": settings.scales,
    "choices": settings.choices,
}
MARKED = re.compile(
    r"(?P<open><!-- table:(?! )(?P<what>[^>]*?) -->\n)(?P<old>.*?)(?P<close><!-- /table -->)", re.DOTALL
)
INLINE = re.compile(r"\{\{ (?P<what>[^{}]+?) \}\}")
MACHINE = ("python", "packages", "git", "cpu", "cpu_count", "cuda_devices", "processes")


def block(what: str) -> str:
    """The text of a block.

    Raises:
        KeyError: there is no such block.
    """
    name, *arguments = shlex.split(what)
    if name not in BLOCKS:
        raise KeyError(f"<!-- table:{what} -->: {name} is not one of {', '.join(BLOCKS)}")
    return BLOCKS[name](*arguments)


def filled(text: str) -> str:
    """A page with all its blocks."""
    return MARKED.sub(lambda match: f"{match['open']}{block(match['what'])}\n{match['close']}", text)


def built(text: str) -> str:
    """A page of the site: blocks and numbers in their places, without the markers."""
    text = MARKED.sub(lambda match: f"\n{block(match['what'])}\n", text)
    return INLINE.sub(lambda match: value(match["what"]), text)


def first_run(folder: Path) -> dict[str, Any]:
    """What README shows of a run: its table, how long it took and on what; no path and no name of the machine."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("eval", "run", "environment")}
    models = ("teacher", "student before", "student after", "after - before")
    seconds = {"all": found["run"]["ended"] - found["run"]["started"], "steps": found["eval"]["cost"]["time/total"]}
    return {
        "command": "python -m gkd_rl.run experiment=xsum_rl alpha=0.5",
        "seconds": seconds,
        "settings": found["eval"]["settings"],
        "eval": {model: found["eval"][model] for model in models},
        "environment": {key: found["environment"][key] for key in MACHINE},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a file would change")
    parser.add_argument("--first-run", type=Path, metavar="FOLDER", help="a finished run of README's first command")
    arguments = parser.parse_args()
    if arguments.first_run:
        text = json.dumps(first_run(arguments.first_run), indent=1) + "\n"
        (RESULTS / "first_run.json").write_text(text, encoding="utf-8")
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = filled(old)
    if arguments.check and new != old:
        sys.stdout.writelines(
            difflib.unified_diff(
                old.splitlines(True), new.splitlines(True), "README.md", "README.md from the result files"
            )
        )
        raise SystemExit("README.md is not what the result files give: run python docs/tables.py")
    if not arguments.check:
        readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
