"""Findings as SARIF 2.1.0, which GitHub code scanning and editors show.

References:
    OASIS 2020, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch.core.findings import Finding
from rightbatch.core.machine import installed
from rightbatch.core.text import described
from rightbatch.job.loading import JobAddress
from rightbatch.lint.baseline import fingerprint
from rightbatch.lint.rules import ALL_RULES, explanation, meaning, page, rule_name

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MAKER = "make_job"  # the function in a built-in job's file


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where findings are shown.

    Attributes:
        path: Of a file.
        line: In it, from 1.
    """

    path: Path
    line: int = 1

    @property
    def location(self) -> dict[str, Any]:
        """As SARIF has it: relative to the folder of the call, if it lies below."""
        path, here = self.path.resolve(), Path.cwd()
        artifact = {"uri": path.as_uri()}
        if path.is_relative_to(here):
            relative = path.relative_to(here)
            uri = path.as_uri().removeprefix(here.as_uri()).lstrip("/")
            artifact = {"uri": uri or str(relative), "uriBaseId": "%SRCROOT%"}
        region = {"startLine": self.line}
        return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def defined_at(address: JobAddress) -> Place:
    """The file of a job, and the line where its name is first bound; else line 1.

    Example:
        >>> from rightbatch.job.loading import look_up
        >>> defined_at(look_up("digits")).path.name
        'digits.py'
    """
    path, name = Path(address.where), address.name
    if address.kind != "file":
        module = address.where
        if address.kind == "built-in":
            module, name = f"rightbatch.job.built_in.{module}", MAKER
        spec = importlib.util.find_spec(module)
        path = Path("" if spec is None else spec.origin or "")
    if not path.is_file():
        return Place(path=path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # outer ones first
        if isinstance(node, ast.stmt) and name in _bound(node):
            return Place(path=path, line=node.lineno)
    return Place(path=path)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {a.asname or a.name for a in node.names}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    inner = [n for target in targets for n in ast.walk(target)]
    return {n.id for n in inner if isinstance(n, ast.Name)}


def sarif_document(
    findings: Iterable[Finding], *, job: str, place: Place
) -> dict[str, Any]:
    """One run of the linter.

    Args:
        findings: All are shown at ``place``.
        job: What was checked; uploads for other jobs do not replace this one.
        place: Where the job is defined.

    Returns:
        What `json.dumps` takes.
    """
    codes = list(ALL_RULES)
    location = place.location
    results = [
        {
            "ruleId": f.code,
            "ruleIndex": codes.index(f.code),
            "level": f.severity,
            "message": {"text": described(f.what, seen=f.seen, why=f.why, fix=f.fix)},
            "locations": [location],
            "partialFingerprints": {"finding/v1": fingerprint(f)},
        }
        for f in findings
    ]
    driver = {
        "name": "rightbatch",
        "version": installed("rightbatch"),
        "rules": [_rule(code) for code in codes],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"rightbatch/{job}/"},
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str) -> dict[str, Any]:
    text = explanation(code)
    why = text.split("\n\n")[1:2] or [text]
    return {
        "id": code,
        "name": rule_name(code),
        "shortDescription": {"text": meaning(code)},
        "fullDescription": {"text": why[0]},
        "help": {"text": text, "markdown": page(code)},
    }
