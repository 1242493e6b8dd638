"""Values that show their own words at a prompt and in a notebook, not their fields."""

from __future__ import annotations

from html import escape


class ShownAsText:
    """Shown as ``str`` says it; for values with dozens of fields.

    Example:
        >>> class Answer(ShownAsText):
        ...     def __str__(self) -> str:
        ...         return "B < 64"
        >>> Answer()
        Answer: B < 64
        >>> Answer()._repr_html_()
        '<pre>B &lt; 64</pre>'
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self}"

    def _repr_html_(self) -> str:
        """What IPython and Jupyter show."""
        return f"<pre>{escape(str(self))}</pre>"
