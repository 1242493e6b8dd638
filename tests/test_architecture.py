"""Arrows go one way; the public surface is what it says; help needs no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rightbatch as rb

SOURCE = Path(rb.__file__).parent
# Lower first: a room may import from itself and from rooms before it.
ROOMS = [
    "core",
    "job",
    "noise",
    "coupling",
    "data",
    "schedules",
    "training",
    "memory",
    "measure",
    "fit",
    "plan",
    "lint",
    "report",
    "tuning",
    "sweep",
    "cluster",
    "landscape",
    "lab",
    "integrations",
    "cli",
]
LOOSE = {"__init__.py", "__main__.py"}


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
    return [p for p in SOURCE.rglob("*.py") if p.parent != SOURCE]


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    room = _room(path)
    assert _imports(path) <= set(ROOMS[: ROOMS.index(room) + 1])


PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._[a-zA-Z]"
    r"|\._(version|cdata|is_view|orig_mod|workers|shutdown_workers)\b|kineto"
)


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_private_torch_is_touched_in_one_file_only(path: Path) -> None:
    names = {
        node.module if isinstance(node, ast.ImportFrom) else ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Attribute, ast.ImportFrom))
    }
    private = {name for name in names if name and PRIVATE.search(name)}
    assert not private or path.name == "torch_private.py"


def test_the_top_level_holds_rooms_only() -> None:
    assert {p.name for p in SOURCE.glob("*.py")} == LOOSE
    assert {_room(p) for p in _files()} == set(ROOMS)


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
        "from rightbatch.cli.main import main\n"
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
    spaces = {"coupling", "data", "lab", "landscape", "schedules"}  # public as they are
    of_modules = {"integrations", "sweep"}  # their names are not looked for here
    assert not {_room(p) for p in _files()} & (set(rb.__all__) - spaces - of_modules)
    for space in spaces:
        modules = {path.stem for path in (SOURCE / space).iterdir()}
        assert not modules & set(getattr(rb, space).__all__)


def test_a_report_loads_few_modules_and_no_training_loop() -> None:
    code = (
        "import sys, rightbatch.report.page\n"
        "print(*(m for m in sys.modules if m.split('.')[0] == 'rightbatch'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert len(loaded) <= 52, sorted(loaded)
    loops = {f"rightbatch.training.{n}" for n in ("train", "loop", "run_state")}
    assert not loaded & loops
