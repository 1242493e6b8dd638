"""Arrows go one way; the public surface is what it says; help needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rightbatch as rb

SOURCE = Path(rb.__file__).parent
# Lower first: a room may import from itself and from rooms before it.
ROOMS = [
    "errors",
    "oom",
    "units",
    "environment",
    "blame",
    "estimate",
    "record",
    "isolation",
    "watch",
    "noise",
    "feed",
    "optimizers",
    "job",
    "training",
    "jobs",
    "loading",
    "lint",
    "measure",
    "fit",
    "boundary",
    "step_law",
    "largest",
    "measuring",
    "plan",
    "run",
    "tuning",
    "report",
    "console",
    "training_command",
    "memory_command",
    "cluster_command",
    "options",
    "cli",
]


def _imports(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "rightbatch."
        ):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1]
                for a in node.names
                if a.name.startswith("rightbatch.")
            }
    return found


def _files() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p.name not in ("__main__.py",)]


def _room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    late = {
        # The page is made on demand by tuning.report: the only arrow that goes back,
        # taken when the property is read.
        "tuning": {"report"},
    }
    assert _imports(path) <= allowed | late.get(room, set())


def test_every_room_is_known() -> None:
    assert {_room(p) for p in _files()} - {"__init__"} == set(ROOMS)


def test_files_stay_short() -> None:
    long = {p.name: n for p in _files() if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_public_names_exist() -> None:
    for name in rb.__all__:
        assert getattr(rb, name) is not None
    assert sorted(rb.__all__) == list(dir(rb))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rb.nonsense


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["tune", "--help"],
        ["tune", "--bugdet", "3"],
        ["tnue"],
        ["tune", "x.py"],
    ],
)
def test_help_and_usage_errors_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nsys.argv = ['rightbatch', *sys.argv[1:]]\n"
        "from rightbatch.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    status = stop.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_no_function_hides_behind_a_module() -> None:
    """An imported submodule takes its name on the package from a function."""
    assert not {_room(p) for p in _files()} & set(rb.__all__)
