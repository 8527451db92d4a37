"""The page: one HTML file with its style, its script and its data in it, and a policy that lets nothing else in.

Data go in as JSON that no text can leave: <, >, & and the line separators are escaped, and the script writes them with
textContent only. The content security policy allows this one script and this one style by their hashes, so that even a
mistake there could run nothing and ask no host.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

SCRIPTS = (
    *("data.js", "numbers.js", "draw.js", "points.js", "lines.js", "cells.js"),
    *("figures.js", "table.js", "texts.js", "main.js"),
)
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
    for place, part in parts.items():  # the data come last: whatever they hold is not looked at again
        template = template.replace(place, part, 1)
    return template


def safe_json(data: Any) -> str:
    """JSON that may stand in a script element of a page, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _hash(text: str) -> str:
    """A source of the policy: the text's own hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
