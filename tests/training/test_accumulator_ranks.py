"""The accumulator on 2 and 4 gloo processes: equal gradients, and trouble survived."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from launching import TESTS, torchrun

WRAPPERS = ["ddp", "fsdp"]
FAULTS = [
    "forward:2:ddp",
    "forward:3,4:ddp",
    "backward:2:ddp",
    "backward:3:ddp",
    "backward:1,6:ddp",
    "before:1,5:buffers",  # while DDP of the other rank would send its buffers
    "backward:2:unused",
]
KINDS = {2: [*WRAPPERS, *FAULTS, "uneven", "watched", "failure"], 4: WRAPPERS}


def _reasons(text: str) -> str:
    signs = ("Error", "terminate", "what()", "Check failed", "assert")
    return "\n".join(
        line[:300] for line in text.splitlines() if any(sign in line for sign in signs)
    )


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Any]:
    """What each rank finds; all kinds of a number of ranks are run in one launch."""
    found: dict[int, Any] = {}

    def of_kind(kind: str, ranks: int = 2) -> list[Any]:
        if ranks not in found:
            folder = tmp_path_factory.mktemp("ranks")
            program, out = TESTS / "accumulation_ranks.py", folder / "found.json"
            done = torchrun(program, out, *KINDS[ranks], cwd=folder, ranks=ranks)
            assert done.returncode == 0, _reasons(done.stderr)
            found[ranks] = json.loads(out.read_text())
        return [of_rank[kind] for of_rank in found[ranks]]

    return of_kind


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_every_case_gives_the_gradient_of_the_whole(
    kind: str, ranks: int, on_ranks: Any
) -> None:
    """Against one example at a time in double; float32 leaves 2e-7 at most."""
    for found in on_ranks(kind, ranks):
        assert len(found) == 5
        assert max(found.values()) <= 1e-6


@pytest.mark.parametrize("fault", FAULTS)
def test_memory_that_runs_out_on_one_rank_is_survived_by_all(
    fault: str, on_ranks: Any
) -> None:
    """The same parameters as without, one step each in the optimizer's state."""
    for found in on_ranks(fault):
        assert found["retries"] >= 1
        assert found["heard"] >= 1
        assert found["micro"] < 3
        assert found["optimizer_steps"] == [5]
        assert found["error"] <= 1e-6


def test_a_bug_on_one_rank_ends_all_with_a_reason(on_ranks: Any) -> None:
    first, second = on_ranks("failure")
    assert "another rank" in first["message"] or "rank 1" in first["message"]
    assert "KeyError" in second["message"]


def test_ranks_whose_batches_are_not_split_alike_compare_alike(on_ranks: Any) -> None:
    """Each makes as many passes as the others; of one example none can compare."""
    for found in on_ranks("uneven"):
        assert [case["is"] for case in found] == [True, True, False]
        for case in found:
            assert case["counts"] == [case["true"]] * 2
            assert case["error"] <= 1e-6


def test_a_monitor_beside_it_reads_the_gradient_of_each_rank(on_ranks: Any) -> None:
    """Against one gradient a rank, computed directly; float32 leaves 1e-4."""
    for found in on_ranks("watched"):
        assert found["found"] == pytest.approx(found["true"], rel=1e-4)
