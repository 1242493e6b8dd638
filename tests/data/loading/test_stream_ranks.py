"""Real processes under torchrun: ranks, DDP, workers, a changing batch, a ledger."""

import json
from pathlib import Path

import pytest

import reference
from launching import TESTS, torchrun


@pytest.mark.parametrize("ranks", [2, 4])
def test_real_processes_split_each_step(ranks: int, tmp_path: Path) -> None:
    done = torchrun(TESTS / "feeding_ranks.py", tmp_path, ranks=ranks, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    order = reference.epochs(53, 6, 2)
    at = 0
    for size, seen in zip(found["asked"], found["seen"], strict=True):
        count = min(size, 53 - at % 53)
        assert sorted(seen) == sorted(order[at : at + count])
        at += count
    assert at == 106
    assert found["gradient error"] < 1e-5
    assert found["audit"] == [0, 0]
    *batches, carried, refused, told = found["shards"]
    assert all(len(batch) in (1, 2) for batch in batches)
    assert carried * ranks == 4
    assert "batch_size 4 on rank 0, 5 on rank 1" in refused
    assert any("the ranks read different examples" in text for text in told)
    for told, name in zip(found["refusals"], ("seed", "length", "size"), strict=True):
        assert "the ranks' streams are not alike" in told
        assert name in told
    states = found["strata states"]
    assert all(s == everyone[0] for everyone in states for s in everyone)
    assert states[0][0]["extra"][2:] != states[-1][0]["extra"][2:]  # it was measured
