"""The site's other pages: README as its index, and every file that a page links to.

The Markdown in ``docs/`` links to files of the repository (``../examples/own_job.py``),
so that it can be read where the code is. On the site such a file is a page of its own,
under ``repository/``, and the links lead there.

Every rule of the linter has a page, made of its docstring; a code in the first column
of a table in ``checks.md`` leads to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

from rightbatch.lint.rules import ALL_RULES
from rightbatch.lint.rules import page as rule_page

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^\| (RB\d{3}) \|", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=(?:#[^)\s]*)?\))")


def on_files(files: Any, config: Any) -> Any:
    """Add README as the index, the rules' pages, and the linked files."""
    waiting = ["README.md", *(f"docs/{f.src_uri}" for f in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            content = _markdown_of(path)
            files.append(File.generated(config, _page_of(path), content=content))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            linked = {t for m in LINK.finditer(text) if (t := _target(path, m[0]))}
            waiting += sorted(linked - seen)
            seen |= linked
    for code in ALL_RULES:
        place = f"checks/{code}.md"
        files.append(File.generated(config, place, content=rule_page(code)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links between files links between pages, and codes links to rules."""
    place = page.file.src_uri
    if place == "checks.md":
        markdown = CODE.sub(_rule_link, markdown)
    path = _path_of(place)

    def link(match: re.Match[str]) -> str:
        target = _target(path, match[0])
        if target is None:
            return match[0]
        return os.path.relpath(_page_of(target), PurePosixPath(place).parent)

    return LINK.sub(link, markdown)


def _rule_link(row: re.Match[str]) -> str:
    """The first cell of a table's row, as a link where the rule has a page."""
    code = row[1]
    return f"| [{code}](checks/{code}.md) |" if code in ALL_RULES else row[0]


def _target(path: str, link: str) -> str | None:
    """The file of the repository that a link in ``path`` leads to, if it is one."""
    target = os.path.normpath(PurePosixPath(path).parent / link)
    return target if (ROOT / target).is_file() else None


def _page_of(path: str) -> str:
    """Of a file in the repository, the page on the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" + ("" if path.endswith(".md") else ".md")


def _path_of(page: str) -> str:
    """Of a page, the file in the repository."""
    if page == "index.md":
        return "README.md"
    if not page.startswith("repository/"):
        return f"docs/{page}"
    path = page.removeprefix("repository/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _markdown_of(path: str) -> str:
    """A page's content: the file itself, or the file in a frame."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = {".py": "python", ".json": "json"}.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{text}````\n"
