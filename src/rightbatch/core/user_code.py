"""Errors raised by the user's own code, told with the user's own line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import JobError, RightbatchError
from rightbatch.core.text import first_line, message

_PACKAGE = Path(__file__).parents[1]
_BUILT_IN = _PACKAGE / "job" / "built_in"
# torch raises again, here, what was raised in a data worker, with this as its message.
_ELSEWHERE = re.compile(r"Caught (\w+) in .*?Original Traceback \(.*?\):\n", re.DOTALL)
_FRAME = re.compile(r'  File "(.+)", line (\d+), in .*\n(?:    (?! *[~^]+\n)(.*)\n)?')
_NOTES = 3  # lines of notes that are told
READING = "reading the data"  # what it is called, wherever it happens


@contextmanager
def user_code(what: str, *, imported: bool = False, form: str = "") -> Iterator[None]:
    """Turn an exception of the user's code into a `JobError` that names their line.

    Memory that runs out is passed on as it is: whoever chose the batch handles it.

    Args:
        what: Who raised, as the start of a sentence: ``"the loss"``.
        imported: The code is imported, before any batch: memory that runs out is an
            error of it as well.
        form: How the code should look, said where its arguments may be others than
            it expects.

    Raises:
        JobError: The block raised anything but a `RightbatchError`, or called
            ``sys.exit``: a run ends by its own status. The original exception is its
            cause.
    """
    try:
        yield
    except RightbatchError:
        raise
    except (Exception, SystemExit) as error:
        if not imported and _is_out_of_memory(error):
            raise
        fix = "mend this line, or leave out what calls it"
        if imported:
            fix = (
                "run the file with python first; guard training with "
                'if __name__ == "__main__"'
            )
        elif form and isinstance(error, (TypeError, AttributeError)):
            fix = f"{form}; if it is so, mend this line"
        raised = _raised(error)
        told = [raised.text, f"at {raised.line}", *raised.notes[:_NOTES]]
        raise JobError(
            f"{what} raised {raised.kind}", seen="\n        ".join(told), fix=fix
        ) from error


@dataclass(frozen=True, slots=True)
class _Raised:
    """What was raised, here or in a data worker.

    Attributes:
        kind: Name of its type.
        text: The first line of its message.
        line: The user's own line, as ``file:line: code``.
        notes: Added to it on its way.
    """

    kind: str
    text: str
    line: str
    notes: tuple[str, ...]


def _raised(error: BaseException) -> _Raised:
    text = message(error)
    elsewhere = _ELSEWHERE.search(text)
    if elsewhere is None:
        notes = tuple(getattr(error, "__notes__", ()))
        kind = type(error).__name__
        return _Raised(kind, first_line(error), user_line(error), notes)
    # Of a chain of exceptions the last is the one that was caught.
    last = text.rpartition("Traceback (most recent call last):\n")[2]
    frames = [
        (file, int(number), code.strip()) for file, number, code in _FRAME.findall(last)
    ]
    lines = [x for x in _FRAME.sub("", last).splitlines() if x.strip(" ~^")]
    kind, _, text = (lines or [""])[0].partition(": ")
    kind = kind.rpartition(".")[2] or elsewhere[1]
    return _Raised(kind, text or kind, _deepest(frames), tuple(lines[1:]))


def where_made(data: object) -> str:
    """Where the examples of a data set are made: its own method, if a user's; or ""."""
    while type(data).__module__ == "torch.utils.data.dataset" and hasattr(
        data, "dataset"
    ):
        data = data.dataset  # of a subset
    for name in ("__getitems__", "__getitem__"):
        code = getattr(getattr(type(data), name, None), "__code__", None)
        if code is not None and is_theirs(code.co_filename):
            place = f"{code.co_filename}:{code.co_firstlineno}"
            return f"{type(data).__name__}.{name}, {place}"
    return ""


def user_line(error: BaseException) -> str:
    """The deepest frame outside of libraries, as ``file:line: code``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    return _deepest([(f.filename, f.lineno or 0, f.line or "") for f in frames])


def _deepest(frames: list[tuple[str, int, str]]) -> str:
    theirs = [frame for frame in frames if is_theirs(frame[0])]
    file, number, code = (theirs or frames or [("?", 0, "")])[-1]
    return f"{file}:{number}: {code}"


def is_theirs(file: str) -> bool:
    """Whether a file belongs to the user, or is a built-in job."""
    library = "site-packages" in file or "/lib/python" in file or file.startswith("<")
    path = Path(file)
    ours = path.is_relative_to(_PACKAGE) and not path.is_relative_to(_BUILT_IN)
    return not library and not ours


def _is_out_of_memory(error: BaseException) -> bool:
    # Here, since commands look up a job before torch is imported.
    from rightbatch.core.torch_private import is_out_of_memory

    return is_out_of_memory(error)
