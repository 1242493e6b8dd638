"""The site's other pages: README as its index, and every file that a page links to.

The Markdown in ``docs/`` links to files of the repository (``../examples/own_job.py``),
so that it can be read where the code is. On the site such a file is a page of its own,
under ``repository/``, and the links lead there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=(?:#[^)\s]*)?\))")


def on_files(files: Any, config: Any) -> Any:
    """Add README as the index, and the linked files."""
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
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links between files links between pages."""
    place = page.file.src_uri
    path = _path_of(place)

    def link(match: re.Match[str]) -> str:
        target = _target(path, match[0])
        if target is None:
            return match[0]
        return os.path.relpath(_page_of(target), PurePosixPath(place).parent)

    return LINK.sub(link, markdown)


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
