"""The lab from Python: which claims there are, and one of them run."""

from __future__ import annotations

from rightbatch.core.whole_number import whole_number
from rightbatch.lab.chapters import CLAIMS, claim_named
from rightbatch.lab.claim import Claim, Outcome, run_claim


def claims() -> tuple[Claim, ...]:
    """All claims, in the order in which a reader meets them.

    Example:
        >>> import rightbatch as rb
        >>> "variance-over-b" in [claim.id for claim in rb.lab.claims()]
        True
    """
    return tuple(CLAIMS.values())


def run(name: str, *, seed: int = 0, full: bool = False) -> Outcome:
    """Run one claim; in a notebook its chart is shown.

    Args:
        name: Its id.
        seed: Of all its random numbers.
        full: At full size, where that takes longer than some seconds.

    Raises:
        SettingError: There is no such claim; the nearest are named.
        MissingExtraError: It needs data of an extra that is not installed.

    Example:
        >>> import rightbatch as rb
        >>> outcome = rb.lab.run("variance-over-b")
        >>> outcome.verdict, outcome.as_recorded
        ('holds', True)
    """
    seed = whole_number(seed, "seed", least=0)
    return run_claim(claim_named(str(name)), seed=seed, full=full)
