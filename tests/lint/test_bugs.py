"""Small scripts with one bug each: the linter names it, and is silent on the fix.

A file of ``bugs/`` is called ``CODE_what.py`` and holds ``CODE``, and two functions
that return arguments of `rb.check`: ``buggy()`` and ``fixed()``.
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import rightbatch as rb
from rightbatch.core.findings import Finding
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.rules import RULES, explanation

BUGS = sorted((Path(__file__).parent / "bugs").glob("RB*.py"))
LATER = ("RB3", "RB4", "RB5", "RB6")


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bugs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_a_bug_is_named_and_its_fix_is_clean(path: Path) -> None:
    bug = script(path)
    assert path.stem.startswith(f"{bug.CODE}_")
    assert inspect.getdoc(bug)
    found = [f for f in rb.check(**bug.buggy()).items if f.code == bug.CODE]
    assert len(found) == 1
    assert_explained(found[0])
    items = rb.check(**bug.fixed()).items
    left = [f for f in items if f.code == bug.CODE or f.code.startswith(LATER)]
    assert not left, "\n".join(map(str, left))


def assert_explained(finding: Finding) -> None:
    """It has a number of this job, a reason and a fix, and fits on a line each."""
    assert any(c.isdigit() for c in finding.seen)
    assert finding.why
    assert finding.fix
    assert len(finding.what) <= 80


def test_every_later_rule_has_a_bug_that_shows_it() -> None:
    shown = {path.stem.split("_")[0] for path in BUGS}
    assert shown >= set(RULES) - set(JOB_RULES)


@pytest.mark.parametrize("code", [c for c in RULES if c not in JOB_RULES])
def test_every_later_rule_explains_itself(code: str) -> None:
    """What is true, why it matters, what to do, what is not seen."""
    paragraphs = explanation(code).split("\n\n")
    assert len(paragraphs) >= 4
    assert len(paragraphs[0].splitlines()) == 1


@pytest.mark.parametrize("name", ["digits", "stdlib_gpt"])
def test_the_built_in_jobs_are_clean(name: str) -> None:
    assert rb.check(rb.load_job(name)).items == ()
