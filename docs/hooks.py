"""What mkdocs does besides rendering pages: tables, numbers, figures, and pages from elsewhere in the repository."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blocks.values import RESULTS, ROOT
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tables import built

FIGURES = {"figures/alpha.svg": RESULTS / "paper" / "alpha.svg", "figures/lambda.svg": RESULTS / "paper" / "lambda.svg"}
COPIES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
EXAMPLES = ROOT / "docs" / "examples"
LISTED = "<!-- examples -->"
TO_DOCS = re.compile(r"\]\(docs/")
TO_REPOSITORY = re.compile(r"\[(?P<text>[^\]]+)\]\((?!https?:|#|[\w./-]+\.md(?:#|\)))(?P<path>[\w./-]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add figures of the results, and the files of the repository's top level that are pages too."""
    for name, source in FIGURES.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    for name, source in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_for_the_site(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables and numbers into their places."""
    if LISTED in markdown:
        markdown = markdown.replace(LISTED, examples())
    return built(markdown)


def examples() -> str:
    """Every script of docs/examples: what it shows, and its code."""
    parts = []
    for path in sorted(EXAMPLES.glob("*.py"), key=lambda path: (path.stem != "quickstart", path.stem)):
        code = path.read_text(encoding="utf-8")
        tree = ast.parse(code)
        doc = (ast.get_docstring(tree) or "").strip()
        body = "\n".join(code.splitlines()[tree.body[0].end_lineno or 0 :]).strip() if doc else code.strip()
        title, _, rest = doc.partition("\n")
        command = f"python docs/examples/{path.name}"
        parts += [f"## {path.stem.replace('_', ' ').capitalize()}", title, rest.strip()]
        parts += [f"```bash\n{command}\n```", f'```python title="docs/examples/{path.name}"\n{body}\n```']
    return "\n\n".join(part for part in parts if part)


def _for_the_site(text: str) -> str:
    """Links of a file at the top level, seen from docs/; what is no page becomes its path."""
    text = TO_DOCS.sub("](", text)
    for name, source in COPIES.items():
        text = text.replace(f"]({source})", f"]({name})")
    return TO_REPOSITORY.sub(lambda match: f"`{match['path']}`", text)


def on_config(config: MkDocsConfig) -> Any:
    """The version is that of the package."""
    text = (ROOT / "gkd_rl" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', text)
    config.extra["version_of_package"] = found[1] if found else ""
    return config
