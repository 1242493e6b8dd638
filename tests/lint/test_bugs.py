"""Every bug of the corpus is found by its code, and its fixed twin is clean."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb

BUGS = sorted((Path(__file__).parent / "bugs").glob("RB*.py"))
LATER = ("RB3", "RB4", "RB5", "RB6")


def script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_a_bug_is_found_and_its_fixed_twin_is_clean(path: Path) -> None:
    bug = script(path)
    assert path.stem.startswith(bug.CODE)
    assert bug.CODE in {finding.code for finding in rb.check(**bug.buggy()).items}
    after = {finding.code for finding in rb.check(**bug.fixed()).items}
    assert bug.CODE not in after
    assert not {code for code in after if code.startswith(LATER)}
