"""How what went wrong, and why, is laid out in lines."""

from __future__ import annotations


def described(what: str, *, seen: str = "", why: str = "", fix: str = "") -> str:
    """A sentence, and below it what showed it, why it matters and what to do.

    Example:
        >>> print(described("the data set is empty", seen="len(data) = 0"))
        the data set is empty
          seen  len(data) = 0
    """
    details = (("seen", seen), ("why", why), ("fix", fix))
    return "\n".join(
        [what] + [f"  {label:<5} {text}" for label, text in details if text]
    )


def message(error: BaseException) -> str:
    """What an error says, also where a method ``__str__`` of its own raises."""
    try:
        return str(error)
    except Exception:
        return " ".join(a for a in error.args if isinstance(a, str))


def first_line(error: BaseException, width: int = 300) -> str:
    """The first line of an error's message, cut at ``width``; its type if it has none.

    Example:
        >>> first_line(ValueError("no such column: age"))
        'no such column: age'
    """
    lines = message(error).strip().splitlines()
    return lines[0][:width] if lines else type(error).__name__
