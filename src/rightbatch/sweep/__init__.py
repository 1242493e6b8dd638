"""The empirical answer: branch, train, see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.sweep.batch_rate_study import BestRate, Contour, Study
    from rightbatch.sweep.branch_penalties import BranchPenalty
    from rightbatch.sweep.branching import BranchProbe, branch_probe
    from rightbatch.sweep.studying import study

__all__ = [
    "BestRate",
    "BranchPenalty",
    "BranchProbe",
    "Contour",
    "Study",
    "branch_probe",
    "study",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "sweep.branching": ("BranchProbe", "branch_probe"),
        "sweep.batch_rate_study": ("BestRate", "Contour", "Study"),
        "sweep.branch_penalties": ("BranchPenalty",),
        "sweep.studying": ("study",),
    },
)
