"""Docstrings as the site's parser wants them; loaded by mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

# An entry for several arguments: ``rank, world_size: ...``
SEVERAL = re.compile(r"^    (\w+(?:,\s+\w+)+): ", re.MULTILINE)


class OurDocstrings(griffe.Extension):
    """Reads ``Example:`` as a section of examples, and one entry for several names."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Every function, class and module as it is loaded."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
        obj.docstring.value = SEVERAL.sub(_apart, text)


def _apart(entry: re.Match[str]) -> str:
    *others, last = re.split(r",\s+", entry[1])
    return "".join(f"    {name}: See `{last}`.\n" for name in others) + f"    {last}: "
