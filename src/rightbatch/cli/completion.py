"""What a shell offers for JOB: built-in jobs, files, and the names inside a file."""

from __future__ import annotations

import ast
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from rightbatch.job.built_in import BUILT_IN


def offer_jobs(
    context: click.Context, argument: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Completions of a job's address; no code of the user's is run."""
    where, colon, begun = typed.rpartition(":")
    if colon and where.endswith(".py"):
        names = [name for name in _names_in(Path(where)) if name.startswith(begun)]
        return [CompletionItem(f"{where}:{name}") for name in names]
    jobs = [name for name in BUILT_IN if name.startswith(typed)]
    return [*map(CompletionItem, jobs), CompletionItem(typed, type="file")]


def _names_in(path: Path) -> list[str]:
    """What a file assigns or defines at its top level, without what is private."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.args.args:
            names.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else ()
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]
