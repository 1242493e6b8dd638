"""What a user types for a job, ``digits`` or ``train.py:job``, understood and loaded.

To understand it nothing is run, and torch is not imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.user_code import user_code
from rightbatch.job.built_in import BUILT_IN

if TYPE_CHECKING:
    from rightbatch.job.job import Job

DEFAULT_NAME = "job"
FORMS = f"a built-in job ({', '.join(BUILT_IN)}), file.py:name or package.module:name"


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
    """Understand a job's address, and run nothing.

    Raises:
        SettingError: There is no such file or built-in job; the nearest is given.
    """
    if text in BUILT_IN:
        return JobAddress(
            text=text, kind="built-in", where=text, name="", about=BUILT_IN[text]
        )
    where, _, name = text.rpartition(":")
    if not where or "/" in name or name.endswith(".py"):
        where, name = text, DEFAULT_NAME
    path = Path(where)
    # Unlike Path's own, these say no to what can be no name of a file.
    if os.path.isfile(path):
        about = f"{path.name}:{name}"
        text = f"{path}:{name}"
        return JobAddress(text=text, kind="file", where=where, name=name, about=about)
    if where.endswith(".py") or os.path.exists(path):
        there = os.path.isdir(path.parent)
        files = [p.name for p in path.parent.glob("*.py")] if there else []
        near = difflib.get_close_matches(path.name, files, n=1)
        raise SettingError(
            f"there is no file {path}",
            fix=f"did you mean {path.parent / near[0]}?" if near else FORMS,
        )
    if ":" in text and re.fullmatch(r"[\w.]+", where):
        about = f"module {where}"
        return JobAddress(text=text, kind="module", where=where, name=name, about=about)
    near = difflib.get_close_matches(text, BUILT_IN, n=1, cutoff=0.5)
    raise SettingError(
        f"there is no job {text!r}",
        fix=f"did you mean {near[0]!r}?" if near else FORMS,
    )


def as_job(text: str, made: Any) -> Job:
    """What `load_named` gave, if it is a job.

    Raises:
        JobError: It is none.
    """
    from rightbatch.job.job import Job

    address = look_up(text)
    if not isinstance(made, Job):
        raise JobError(
            f"{address.text} is no rightbatch.Job",
            seen=type(made).__name__,
            fix="a Job, or a function without arguments that returns one; check also "
            "takes a DataLoader or a BatchStream",
        )
    return replace(made, name=address.stem) if made.name == DEFAULT_NAME else made


def load_named(text: str) -> Any:
    """Whatever that name stands for, or what its function without arguments returns.

    Args:
        text: ``digits``, ``file.py:name`` or ``package.module:name``; without a name
            it is ``job``.

    Raises:
        SettingError: Nothing of that name exists.
        JobError: The code raised while it was imported.
    """
    from torch import nn

    from rightbatch.job.job import Job

    address = look_up(text)
    if address.kind == "built-in":
        module = importlib.import_module(f"rightbatch.job.built_in.{address.where}")
        return module.make_job()
    module = _imported(address)
    if not hasattr(module, address.name):
        jobs = [name for name, value in vars(module).items() if isinstance(value, Job)]
        near = difflib.get_close_matches(address.name, jobs or dir(module), n=1)
        near = near or jobs
        raise SettingError(
            f"{address.where} defines no {address.name!r}",
            seen=f"the jobs in it: {', '.join(jobs[:12])}" if jobs else "",
            fix=f"did you mean {address.where}:{near[0]}?" if near else FORMS,
        )
    made: Any = getattr(module, address.name)
    if callable(made) and not isinstance(made, (Job, nn.Module)):
        with user_code(f"{address.name}() in {address.where}", imported=True):
            made = made()
    return made


def _imported(address: JobAddress) -> Any:
    with user_code(f"importing {address.where}", imported=True):
        if address.kind == "module":
            sys.path.insert(0, str(Path.cwd()))
            try:
                return importlib.import_module(address.where)
            finally:
                sys.path.pop(0)
        path = Path(address.where).resolve()
        # Like `python file.py`: its neighbours can be imported, also later on.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        # Under its own name, by which worker processes can import it too; but a file
        # called random.py must not replace the module.
        name = path.stem if _is_free(path) else f"_rightbatch_job_{path.stem}"
        made = importlib.util.spec_from_file_location(name, path)
        assert made is not None
        assert made.loader is not None
        module = importlib.util.module_from_spec(made)
        sys.modules[name] = module  # so that its classes can be copied
        made.loader.exec_module(module)
        return module


def _is_free(path: Path) -> bool:
    """Whether a file's stem is the name of this file, and of no module in use."""
    if path.stem in sys.modules:
        return getattr(sys.modules[path.stem], "__file__", None) == str(path)
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    return spec is not None and spec.origin == str(path)
