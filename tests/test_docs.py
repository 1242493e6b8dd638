"""The pages name only what exists, and the API reference names everything."""

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import rightbatch as rb
from rightbatch.lint.rules import ALL_RULES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rightbatch"
TRAINERS = ("transformers", "lightning", "accelerate", "loggers")
PAGES = sorted((ROOT / "docs").glob("*.md"))
# `data/loading/stream.py: BatchStream.steps()`, as docs/architecture.md writes it
PLACE = re.compile(r"`([\w/]+\.py): ([\w.]+)\(?\)?`")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_public_names_exist(path: Path) -> None:
    names = re.findall(r"\brb\.(\w+(?:\.\w+)*)", path.read_text(encoding="utf-8"))
    for name in names:
        value = rb
        for part in name.split("."):
            assert hasattr(value, part), f"rb.{name}"
            value = getattr(value, part)


def test_the_reference_has_every_public_name() -> None:
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    texts = [page.read_text(encoding="utf-8") for page in pages]
    documented = re.findall(r"^::: rightbatch\.([\w.]+)$", "\n".join(texts), re.M)
    names = ("coupling", "data", "lab", "landscape", "schedules", "sweep")
    spaces = {name: getattr(rb, name) for name in names}
    inside = {f"integrations.{n}": getattr(rb.integrations, n) for n in TRAINERS}
    spaces |= {"integrations": SimpleNamespace(__all__=())} | inside
    public = {name for name in rb.__all__ if name not in {*spaces, "objectives"}}
    for space, module in spaces.items():
        public |= {f"{space}.{name}" for name in module.__all__}
    public |= {f"objectives.{n}" for n in ("Time", "Examples", "Energy", "Money")}
    assert sorted(documented) == sorted(public)


def _defined(path: Path) -> set[str]:
    """Functions, classes and their methods, as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_places_in_the_code_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = PLACE.findall(text)
    assert len(places) >= 10
    wrong = [
        f"{file}: {name}"
        for file, name in places
        if not (SOURCE / file).is_file() or name not in _defined(SOURCE / file)
    ]
    assert not wrong


def test_the_architecture_lists_the_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(
        p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"
    )


def test_the_checks_page_has_every_rule() -> None:
    """Its tables are those of the docstrings: python docs/rule_tables.py makes them."""
    path = ROOT / "docs" / "rule_tables.py"
    spec = importlib.util.spec_from_file_location("rule_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    assert text == module.with_tables(text), "run: python docs/rule_tables.py"
    rows = re.findall(r"^\| (RB\d{3}) \|", text, re.MULTILINE)
    of_runs = {"RB120", "RB121"}  # what `tune` adds by itself
    assert sorted(rows) == sorted({*ALL_RULES, *of_runs})


def test_what_the_page_on_rl_prints_is_what_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its blocks run in order, seeded; each is followed by what it prints."""
    text = (ROOT / "docs" / "reinforcement-learning.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "text"] * 2
    space: dict[str, object] = {}
    for (_, code), (_, printed) in zip(blocks[::2], blocks[1::2], strict=True):
        exec(code, space)
        assert capsys.readouterr().out == printed
