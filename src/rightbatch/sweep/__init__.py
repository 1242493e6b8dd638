"""The empirical answer: branch, train, see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.sweep.branching import BranchProbe, branch_probe
    from rightbatch.sweep.grid_search import Study, study

__all__ = ["BranchProbe", "Study", "branch_probe", "study"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "sweep.branching": ("BranchProbe", "branch_probe"),
        "sweep.grid_search": ("Study", "study"),
    },
)
