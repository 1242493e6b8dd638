"""What a user types for a job, ``digits`` or ``train.py:job``, understood.

Nothing is run and torch is not imported: of a file only the syntax is read.
"""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.user_code import user_line
from rightbatch.job.built_in import BUILT_IN

DEFAULT_NAME = "job"
FORMS = "a built-in job (digits, stdlib_gpt), file.py:name or package.module:name"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAddress:
    """Where a job is to be found.

    Attributes:
        text: What was typed, completed with the default name.
        kind: ``"built-in"``, ``"file"`` or ``"module"``.
        where: Name, path or module.
        name: The object in it.
        about: One line for people.
    """

    text: str
    kind: str
    where: str
    name: str
    about: str

    @property
    def stem(self) -> str:
        """A short name for folders and titles."""
        return Path(self.where).stem if self.kind == "file" else self.where


def look_up(text: str) -> JobAddress:
    """Understand a job's address; read a file's syntax, but run nothing.

    Raises:
        SettingError: Nothing of that name exists; the nearest names are given.
        JobError: The file is not Python.
    """
    if text in BUILT_IN:
        return JobAddress(
            text=text, kind="built-in", where=text, name="", about=BUILT_IN[text]
        )
    where, _, name = text.rpartition(":")
    if not where or "/" in name or name.endswith(".py"):
        where, name = text, DEFAULT_NAME
    path = Path(where)
    if where.endswith(".py") or path.exists():
        return _look_in_file(path, name)
    if ":" in text and re.fullmatch(r"[\w.]+", where):
        about = f"module {where}"
        return JobAddress(text=text, kind="module", where=where, name=name, about=about)
    near = difflib.get_close_matches(text, BUILT_IN, n=1, cutoff=0.5)
    raise SettingError(
        f"there is no job {text!r}",
        fix=f"did you mean {near[0]!r}?" if near else FORMS,
    )


def _look_in_file(path: Path, name: str) -> JobAddress:
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.py")], n=1
        )
        raise SettingError(
            f"there is no file {path}",
            fix=f"did you mean {path.parent / near[0]}?" if near else FORMS,
        )
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        seen = str(error)
        if isinstance(error, SyntaxError):
            seen = f"{error.msg}\n        at {user_line(error)}"
        raise JobError(f"{path} is not valid Python", seen=seen) from error
    except OSError as error:
        raise SettingError(f"cannot read {path}", seen=str(error.strerror)) from error
    names = _top_level(tree)
    stars = any(
        alias.name == "*"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    if name not in names and not stars:
        near = difflib.get_close_matches(name, names, n=1)
        jobs = [n for n, v in names.items() if _is_job(v)]
        guess = (jobs or near or [None])[0]
        raise SettingError(
            f"{path} defines no {name!r}",
            seen=f"it defines {', '.join(list(names)[:6]) or 'nothing'}",
            fix=f"{path}:{guess}" if guess else f"{name} = rightbatch.Job(...)",
        )
    about = f"{path.name}:{name}"
    size = _literal_keyword(names.get(name), "batch_size")
    if size is not None:
        about += f", batch_size={size}"
    text = f"{path}:{name}"
    return JobAddress(text=text, kind="file", where=str(path), name=name, about=about)


def _top_level(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Names a module defines, in order, with the value assigned where there is one."""
    names: dict[str, ast.expr | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    names[target.id] = node.value
                else:  # several at once: a, job = build()
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            names[part.id] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node.value
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.setdefault(node.name, None)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                names.setdefault((alias.asname or alias.name).split(".")[0], None)
    return names


def _is_job(value: ast.expr | None) -> bool:
    if not isinstance(value, ast.Call):
        return False
    called = value.func
    label = called.attr if isinstance(called, ast.Attribute) else ""
    return label == "Job" or (isinstance(called, ast.Name) and called.id == "Job")


def _literal_keyword(value: ast.expr | None, keyword: str) -> object:
    if not isinstance(value, ast.Call):
        return None
    for item in value.keywords:
        if item.arg == keyword and isinstance(item.value, ast.Constant):
            return item.value.value
    return None
