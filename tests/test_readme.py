"""The two READMEs say the same, and name only what exists."""

import re
from pathlib import Path

import pytest

import rightbatch as rb

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(path: Path) -> list[tuple[str, list[str]]]:
    """Language and lines of every fenced block, without comments."""
    blocks = []
    for language, body in FENCE.findall(path.read_text(encoding="utf-8")):
        lines = [re.sub(r"\s*#.*", "", line).rstrip() for line in body.splitlines()]
        blocks.append((language, [line for line in lines if line]))
    return blocks


def _headings(path: Path) -> list[int]:
    """Levels of the headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def test_both_show_the_same_commands_and_code() -> None:
    english, chinese = map(_blocks, READMES)
    assert len(english) == 12
    assert english == chinese


def test_both_have_the_same_headings() -> None:
    english, chinese = map(_headings, READMES)
    assert english == chinese


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_public_names_exist(path: Path) -> None:
    names = set(re.findall(r"\brb\.(\w+(?:\.\w+)*)", path.read_text(encoding="utf-8")))
    assert len(names) >= 10
    for name in sorted(names):
        value = rb
        for part in name.split("."):
            assert hasattr(value, part), f"rb.{name}"
            value = getattr(value, part)
