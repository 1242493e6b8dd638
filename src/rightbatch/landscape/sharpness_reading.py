"""What is known of the sharpness at one point, and when two may be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number

SAM_RADIUS = 0.05  # [cited: Foret et al. 2021, arXiv:2010.01412]
ADAPTIVE_NOISE = 0.1  # of every weight's own size [assumed]
MATCHED = 0.1  # losses that differ by less are the same [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness:
    """How sharp the training loss is at one point, over one fixed set of examples.

    Attributes:
        job: Its name.
        loss: Mean over the examples; the curvature of cross entropy follows it to zero.
        eigenvalues: Of the Hessian, largest first.
        trace: Of the Hessian.
        trace_error: Its standard error.
        sam: Rise of the loss at a distance of 0.05 along the gradient (Foret et al.
            2021, arXiv:2010.01412).
        adaptive: Mean rise where every weight is multiplied by ``1 + 0.1 xi``, ``xi``
            normal: of the four the one that is the same for one function in other units
            of its weights (compare Kwon et al. 2021, arXiv:2102.11600).
        examples: How many.
        population: How many the data set has.
        probe: A digest of the numbers in the examples.
        mode: Of the model, ``"eval"`` or ``"train"``.
        micro_batch: Most examples in memory at once.
        method: How products with the Hessian were made.
        passes: Over all examples: ``"gradients"``, ``"products"``, ``"losses"``.
        notes: What limits the meaning.
    """

    job: str
    loss: float
    eigenvalues: tuple[Estimate, ...]
    trace: Estimate
    trace_error: float
    sam: Estimate
    adaptive: Estimate
    examples: int
    population: int
    probe: str
    mode: str
    micro_batch: int
    method: str
    passes: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def top(self) -> Estimate:
        """The largest eigenvalue: gradient descent above a rate of 2 / it climbs."""
        return self.eigenvalues[0]

    def __str__(self) -> str:
        error = f"standard error {show_number(self.trace_error)}"
        edge = f"2 / it = {show_number(2 / (self.top.value or math.inf))}"
        noise = f"weights x (1 + {ADAPTIVE_NOISE} xi)"
        rows = [
            ("top eigenvalue", self.top, edge),
            *(("", other, "") for other in self.eigenvalues[1:]),
            ("trace", self.trace, error),
            ("SAM rise", self.sam, f"{SAM_RADIUS} along the gradient"),
            ("adaptive rise", self.adaptive, noise),
        ]
        passes = ", ".join(f"{count} {name}" for name, count in self.passes.items())
        where = f"{self.examples:,} of {self.population:,} examples"
        head = f"sharpness of {self.job[:24]} at loss {show_number(self.loss)}, {where}"
        table = [f"  {a:15} {b!s:31} {c}".rstrip() for a, b, c in rows]
        how = [f"  {self.method}, {self.mode} mode", f"  {passes}"]
        return "\n".join([head, *table, *how, *(f"  note  {n}" for n in self.notes)])


def compare_sharpness(first: Sharpness, second: Sharpness) -> dict[str, Estimate]:
    """How much sharper the first is than the second, at the same training loss.

    Returns:
        First over second of ``"top"``, ``"trace"``, ``"sam"``, ``"adaptive"``, each
        with every ratio of values in both intervals.

    Raises:
        SettingError: Losses are more than 10 % apart, or examples or modes differ.

    Example:
        >>> import rightbatch as rb
        >>> from rightbatch.landscape import compare_sharpness, sharpness
        >>> job = rb.load_job("digits")
        >>> point = sharpness(job, examples=64, most_probes=4)
        >>> compare_sharpness(point, point)["top"].value
        1.0
    """
    if (first.probe, first.mode) != (second.probe, second.mode):
        raise SettingError(
            "these were measured over different examples, or in different modes",
            seen=" and ".join(
                f"{s.examples:,} examples ({s.probe[:6]}) in {s.mode} mode"
                for s in (first, second)
            ),
            why="a few examples look sharper than many by themselves",
            fix="the same job, examples, seed and mode for both",
        )
    apart = abs(first.loss - second.loss)
    if not apart <= MATCHED * min(abs(first.loss), abs(second.loss)):
        raise SettingError(
            "sharpness at different training losses cannot be compared",
            seen=f"losses {first.loss:.4g} and {second.loss:.4g}, more than "
            f"{MATCHED:.0%} apart",
            why="curvature follows the loss itself: who fits better looks flatter",
            fix="train both to the same loss, and measure there",
        )
    names = ("top", "trace", "sam", "adaptive")
    return {name: _ratio(getattr(first, name), getattr(second, name)) for name in names}


def _ratio(a: Estimate, b: Estimate) -> Estimate:
    """Unbounded where the second may be zero."""
    value, ends = a.value / b.value if b.value else math.inf, [-math.inf, math.inf]
    if b.low > 0:
        ends = [x / y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Estimate(value=value, low=min(ends), high=max(ends), method="both intervals")
