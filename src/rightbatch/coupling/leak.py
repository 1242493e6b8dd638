"""What was found to leak, and how it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rightbatch.coupling.perturbation import Across

Mode = Literal["train", "eval"]
_SAID: dict[Across, str] = {
    "examples": "an output depends on another example",
    "time": "an output depends on later steps",
    "documents": "an output depends on another document of its row",
    "loss": "the loss is no sum over examples",
    "ranks": "an output depends on the examples of another rank",
    "placement": "an output depends on the rank its example sits on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One way in which an output depends on what it should not know of.

    Attributes:
        across: ``"examples"``, ``"time"``, ``"documents"``; ``"loss"``: only a loss
            taken over the whole batch tells; ``"ranks"``, ``"placement"``: see `leaks`.
        module: Where it begins, as in ``named_modules``; ``""`` is the model itself,
            ``"(loss)"`` and ``"(call)"`` the function given, around the model.
        layer: The class of that module, or the name of that function.
        modes: In which it was seen: ``("train",)`` alone is a normalization's sign.
        strength: Squared change of outputs that should stay, over that of those that
            may change, where it begins; for examples of one changed at a time, 2/n
            for a BatchNorm over n numbers per channel. For a loss, how far halves of
            the batch change each other's, over the loss.
        lookahead: For time, how many steps ahead are seen; infinite: all of them.
    """

    across: Across
    module: str
    layer: str
    modes: tuple[Mode, ...]
    strength: float
    lookahead: float | None = None

    def __str__(self) -> str:
        place = f"'{self.module}' ({self.layer})" if self.module else self.layer
        text = _SAID[self.across]
        if self.lookahead is not None:
            whole = math.isinf(self.lookahead)
            text += ", all of them" if whole else f", {int(self.lookahead)} ahead"
        text += f", in {' and '.join(self.modes)} mode"
        return f"{text}\n    at {place}, strength {self.strength:.2g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """All that was found: true if anything leaks, so that ``assert not leaks(...)``.

    Attributes:
        items: The leaks: in each mode the first place for each kind; a later one may
            hide behind it.
        examples: In the batch.
        passes: Forward passes made.
        repeatable: Whether two equal passes agree to the bit. If not, what is smaller
            than four times their difference is not seen.
        set_aside: Kinds of change that could not be tried, each with its reason.

    Example:
        >>> bool(Leaks(items=(), examples=8, passes=40))
        False
    """

    items: tuple[Leak, ...]
    examples: int
    passes: int
    repeatable: bool = True
    set_aside: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything leaks."""
        return bool(self.items)

    def __iter__(self):
        """The leaks."""
        return iter(self.items)

    def __str__(self) -> str:
        tried = f"{self.examples} examples, {self.passes} forward passes"
        if self.items:
            lines = [f"leaks ({tried})", *(f"  {leak}" for leak in self.items)]
        else:
            lines = [f"no leak ({tried})"]
        if not self.repeatable:
            lines.append("  equal passes differ: small leaks are not seen")
        lines += [f"  not tried: {reason}"[:79] for reason in self.set_aside]
        return "\n".join(lines)
