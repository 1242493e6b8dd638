"""From what a user types, ``digits`` or ``train.py:job``, to a `Job`.

`look_up` answers before torch is imported; `load_job` imports and runs the code.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch.core.errors import JobError, RightbatchError, SettingError
from rightbatch.core.user_code import user_line
from rightbatch.job.built_in import BUILT_IN

if TYPE_CHECKING:
    from rightbatch.job.job import Job

DEFAULT_NAME = "job"
FORMS = "a built-in job (digits, stdlib_gpt), file.py:name or package.module:name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A job's address, understood without running anything.

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


def look_up(text: str) -> Spec:
    """Understand a job's address; read a file's syntax, but run nothing.

    Raises:
        SettingError: Nothing of that name exists; the nearest names are given.
        JobError: The file is not Python.
    """
    if text in BUILT_IN:
        return Spec(
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
        return Spec(text=text, kind="module", where=where, name=name, about=about)
    near = difflib.get_close_matches(text, BUILT_IN, n=1, cutoff=0.5)
    raise SettingError(
        f"there is no job {text!r}",
        fix=f"did you mean {near[0]!r}?" if near else FORMS,
    )


def _look_in_file(path: Path, name: str) -> Spec:
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
    return Spec(text=text, kind="file", where=str(path), name=name, about=about)


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


def load_job(text: str) -> Job:
    """Load a job by name: built-in, ``file.py:name`` or ``package.module:name``.

    The name may be a `Job` or a function without arguments that returns one.

    Args:
        text: Such as ``"digits"`` or ``"train.py:job"``; ``:job`` may be left out.

    Raises:
        SettingError: Nothing of that name exists.
        JobError: The code raised while it was imported (its line is given), or the
            name is no job.

    Example:
        >>> load_job("digits").batch_size
        16
    """
    return as_job(text, load_named(text))


def as_job(text: str, made: Any) -> Job:
    """What `load_named` gave, if it is a job.

    Raises:
        JobError: It is none.
    """
    from rightbatch.job.job import Job

    spec = look_up(text)
    if not isinstance(made, Job):
        raise JobError(
            f"{spec.text} is no rightbatch.Job",
            seen=type(made).__name__,
            fix="a Job, or a function without arguments that returns one; check also "
            "takes a DataLoader or a BatchStream",
        )
    return replace(made, name=spec.stem) if made.name == DEFAULT_NAME else made


def load_named(text: str) -> Any:
    """Whatever that name stands for, or what its function without arguments returns.

    Args:
        text: As for `load_job`.

    Raises:
        SettingError: Nothing of that name exists.
        JobError: The code raised while it was imported.
    """
    from rightbatch.job.job import Job

    spec = look_up(text)
    if spec.kind == "built-in":
        module = importlib.import_module(f"rightbatch.job.built_in.{spec.where}")
        return module.make_job()
    found = _imported(spec)
    if not hasattr(found, spec.name):
        near = difflib.get_close_matches(spec.name, dir(found), n=1)
        raise SettingError(
            f"{spec.where} defines no {spec.name!r}",
            fix=f"did you mean {spec.where}:{near[0]}?" if near else FORMS,
        )
    made: Any = getattr(found, spec.name)
    if callable(made) and not isinstance(made, Job):
        with _blamed(f"{spec.name}() in {spec.where}"):
            made = made()
    return made


def _imported(spec: Spec) -> Any:
    with _blamed(f"importing {spec.where}"):
        if spec.kind == "module":
            sys.path.insert(0, str(Path.cwd()))
            try:
                return importlib.import_module(spec.where)
            finally:
                sys.path.pop(0)
        path = Path(spec.where).resolve()
        # Like `python file.py`: its neighbours can be imported, also later on.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        # A name of its own: a file called random.py must not replace the module.
        name = f"_rightbatch_job_{path.stem}"
        made = importlib.util.spec_from_file_location(name, path)
        assert made is not None
        assert made.loader is not None
        module = importlib.util.module_from_spec(made)
        sys.modules[name] = module  # so that its classes can be copied
        made.loader.exec_module(module)
        return module


class _blamed:
    """Like `blame.blaming`, also for SystemExit, which a script may raise."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        """Turn what the user's code raised into an error that names its line.

        Raises:
            JobError: It raised.
        """
        if error is None or isinstance(error, (RightbatchError, KeyboardInterrupt)):
            return
        message = str(error).strip() or type(error).__name__
        raise JobError(
            f"{self.what} raised {type(error).__name__}",
            seen=f"{message.splitlines()[0]}\n        at {user_line(error)}",
            fix="run the file with python first; guard training with "
            'if __name__ == "__main__"',
        ) from error
