"""The command, and the page: one HTML file with its style, script and data, and a policy that blocks everything else.

    python -m experiments.report FOLDER... --out report.html --plots report_plots

No text can end the JSON data element: <, >, & and the line separators are escaped, and the script sets them as
textContent only. The content security policy allows this one script and this one style by their hashes and no host, so
that even an error there could not run code from a text or send a request.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.report.payload import payload
from experiments.runs import find_runs
from gkd_rl.errors import GkdRlError

SCRIPTS = (
    *("data.js", "numbers.js", "draw.js", "points.js", "lines.js", "cells.js"),
    *("figures.js", "table.js", "texts.js", "main.js"),
)
NO_PLOTS = "figures as PNG and SVG need matplotlib: pip install matplotlib."
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def html(data: dict[str, Any]) -> str:
    """The page that shows a `payload`."""
    folder = files("experiments.report") / "page"
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (folder / "style.css").read_text(encoding="utf-8")
    template = (folder / "page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"{{policy}}": policy, "{{style}}": style, "{{script}}": script, "{{data}}": safe_json(data)}
    for place, part in parts.items():  # the data come last: nothing is replaced inside them
        template = template.replace(place, part, 1)
    return template


def safe_json(data: Any) -> str:
    """JSON that is safe in a script element of a page, whatever its texts contain."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _hash(text: str) -> str:
    """A source expression of the policy: the hash of the text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def can_draw_plots() -> bool:
    """Whether matplotlib is installed; the page does not need it."""
    return find_spec("matplotlib") is not None


def main(arguments: list[str] | None = None) -> None:
    """Read the folders, write the page, and with --plots the figures as PNG and SVG.

    Raises:
        SystemExit: a folder does not exist or has no run.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description="One HTML page about many runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold them")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page, default report.html")
    parser.add_argument("--plots", type=Path, help="a folder for PNG and SVG of every figure")
    parser.add_argument("--rows", type=int, default=24, help="held-out rows in the sample browser, default 24")
    options = parser.parse_args(arguments)
    if options.rows < 0:
        parser.error(f"--rows {options.rows}: takes 0 or more.")
    if options.plots is not None and not can_draw_plots():
        parser.error(f"--plots {options.plots}: {NO_PLOTS}")
    try:
        runs = find_runs(options.folders)
        if not runs:
            raise GkdRlError(f"no run in or below {', '.join(map(str, options.folders))}: name folders of runs.")
        data = payload(runs, options.rows)
    except GkdRlError as error:
        raise SystemExit(str(error)) from error
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(html(data), encoding="utf-8")
    sys.stdout.write(f"{options.out}: {len(data['runs'])} runs, {options.out.stat().st_size / 1e6:.1f} MB\n")
    if options.plots is not None:
        from experiments.report.plots import write_plots  # here: the page alone needs no matplotlib

        written = write_plots(data, options.plots)
        sys.stdout.write(f"{options.plots}: {len(written)} figures as PNG and SVG\n")


if __name__ == "__main__":
    main()
