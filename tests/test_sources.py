"""Data on disk, and batch samplers."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

import reference
import rightbatch as rb
from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.mapped import (
    MappedFolder,
    MappedLines,
    MappedRows,
    MappedTokens,
)

HERE = Path(__file__).parent


def test_rows_of_a_file_are_those_of_the_array(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    rows.tofile(tmp_path / "rows.bin")
    for data in (
        MappedRows(tmp_path / "rows.npy"),
        MappedRows(tmp_path / "rows.bin", np.float32, (3,)),
    ):
        assert len(data) == 50
        assert len(pickle.dumps(data)) < 1000  # a path, not the rows
        stream = rb.BatchStream(pickle.loads(pickle.dumps(data)), 20, num_workers=2)
        found = torch.cat(list(stream))
        assert torch.equal(found, torch.from_numpy(rows[reference.epochs(50, 0, 1)]))
        stream.close()
    with pytest.raises(rb.SettingError, match="left over"):
        MappedRows(tmp_path / "rows.bin", np.float32, (7,))
    with pytest.raises(rb.SettingError, match="cannot read"):
        MappedRows(tmp_path / "none.npy")
    (tmp_path / "bad.npy").write_text("hello")
    with pytest.raises(rb.SettingError, match=r"no \.npy file"):
        MappedRows(tmp_path / "bad.npy")


def test_blocks_of_tokens_have_their_next_ones(tmp_path: Path) -> None:
    np.arange(101, dtype=np.uint16).tofile(tmp_path / "t.bin")
    data = MappedTokens(tmp_path / "t.bin", block=10)
    assert len(data) == 10
    for x, y in (data[i] for i in range(10)):
        assert torch.equal(x + 1, y)
    with pytest.raises(IndexError):
        data[10]
    with pytest.raises(rb.SettingError, match="101 tokens"):
        MappedTokens(tmp_path / "t.bin", block=101)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("aé\r\t ", max_size=5), min_size=1, max_size=30), st.booleans())
def test_lines_are_those_of_the_text(lines: list[str], ends: bool) -> None:
    import tempfile

    import rightbatch.data.loading.mapped as mapped

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        text = "\n".join(lines) + ("\n" if ends else "")
        path.write_bytes(text.encode())
        expected = text.split("\n")
        expected = expected[:-1] if expected[-1] == "" else expected
        kept, mapped.CHUNK = mapped.CHUNK, 7  # lines over the ends of chunks
        try:
            if not expected:
                with pytest.raises(rb.SettingError, match="no lines"):
                    MappedLines(path)
                return
            data = MappedLines(path)
        finally:
            mapped.CHUNK = kept
        expected = [line.removesuffix("\r") for line in expected]
        assert [data[i] for i in range(len(data))] == expected
        assert [pickle.loads(pickle.dumps(data))[0]] == expected[:1]


def test_a_changed_text_gets_a_new_index(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    assert len(MappedLines(path)) == 2
    path.write_text("one\ntwo\nthree\n")
    assert MappedLines(path)[2] == "three"


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"d{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"d{number % 2}" / f"{number}.txt").write_text(str(number))
    (tmp_path / "other.md").write_text("no")
    data = MappedFolder(
        tmp_path, "*.txt", tmp_path / "names", read=lambda p: p.read_text()
    )
    assert sorted(data[i] for i in range(len(data))) == list("0123456")
    with pytest.raises(rb.SettingError, match="no file"):
        MappedFolder(tmp_path, "*.jpg", tmp_path / "none")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of 20 GB: private memory grows by less than 40 MB."""
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.truncate(20 * 1000**3)
    code = (
        "import sys, numpy as np, rightbatch as rb\n"
        "from rightbatch.data.loading.mapped import MappedRows\n"
        "def own():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int([x for x in lines if 'RssAnon' in x][0].split()[1])\n"
        "data = MappedRows(sys.argv[1], np.float32, (25,))\n"
        "stream = rb.BatchStream(data, 256)\n"
        "next(iter(stream)); before = own()\n"
        "for number, batch in enumerate(stream):\n"
        "    if number == 300: break\n"
        "print(len(data), own() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc on this system")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows, grown = map(int, done.stdout.split())
    assert rows == 200_000_000
    assert grown < 40_000


@pytest.mark.parametrize("workers", [0, 2])
def test_a_followed_sampler_stands_behind_what_came_out(workers: int) -> None:
    data = TensorDataset(torch.arange(100))
    sampler = BatchSampler(data, 7, seed=3)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    seen: list[int] = []
    for number, (x,) in enumerate(sampler.follow(loader)):
        seen += x.tolist()
        if number == 4:
            break
    assert sampler.position == 35
    fresh = BatchSampler(100, 10, seed=3)
    fresh.load_state_dict(sampler.state_dict())
    fresh.batch_size = 10
    for (x,) in fresh.follow(DataLoader(data, batch_sampler=fresh)):
        seen += x.tolist()
    assert seen == reference.epochs(100, 3, 1)
    assert (fresh.epoch, fresh.position) == (1, 0)
    assert len(DataLoader(data, batch_sampler=fresh)) == 10


def test_a_sampler_counts_examples() -> None:
    data = TensorDataset(torch.arange(10))
    for wrong, message in (
        (DataLoader(data, 2), "made for a data set"),
        (0, "is empty"),
        ([], "is empty"),
        (-5, "is empty"),
    ):
        with pytest.raises(rb.SettingError, match=message):
            BatchSampler(wrong, 4)
    named = type("Named", (list,), {"_fingerprint": "abc"})(range(10))
    assert BatchSampler(named, 4).fingerprint == "abc"
    rb.BatchStream(named, 4).load_state_dict(BatchSampler(named, 4).state_dict())
    sampler = BatchSampler(10, 4)
    with pytest.raises(rb.SettingError, match="in order"):
        next(sampler.follow(DataLoader(data, batch_sampler=sampler, in_order=False)))


def test_a_loop_that_is_left_is_told_what_it_may_have_lost() -> None:
    data = TensorDataset(torch.arange(100))
    sampler = BatchSampler(data, 5)
    loader = DataLoader(data, batch_sampler=sampler)
    for _ in loader:
        break
    with pytest.warns(UserWarning, match="fetched ahead is lost"):
        next(iter(loader))
    placed = BatchSampler(data, 5)
    for move in (
        lambda: placed.load_state_dict(placed.state_dict()),
        lambda: placed.set_epoch(placed.epoch + 1),
    ):
        next(iter(placed))
        move()
        next(iter(placed))  # nothing is lost: the place was chosen
        placed.set_epoch(placed.epoch + 1)
    followed = BatchSampler(data, 5)
    loader = DataLoader(data, batch_sampler=followed)
    for _ in range(3):
        for _ in followed.follow(loader):
            break


def test_a_sampler_says_what_it_cannot_do() -> None:
    data = TensorDataset(torch.arange(10))
    sampler = BatchSampler(data, 4)
    with pytest.raises(rb.SettingError, match="does not use this sampler"):
        next(sampler.follow(DataLoader(data, batch_size=2)))
    with pytest.raises(rb.SettingError, match="needs importance weights"):
        next(iter(BatchSampler(data, 4, order=rb.data.Strata([0] * 5 + [1] * 5))))
    with pytest.raises(rb.SettingError, match="one batch per step"):
        next(iter(BatchSampler(data, 8, order=rb.data.Tokens([1] * 10, 4))))
    sampler.set_epoch(3)
    first = [i for b in sampler for i in b]
    assert first == reference.epochs(10, 0, 4)[30:]


def test_a_list_of_names_may_lie_in_its_folder_and_be_made_twice(
    tmp_path: Path,
) -> None:
    for name in ("a", "b", "namesake"):
        (tmp_path / name).write_text(name)
    for _ in range(2):
        files = MappedFolder(tmp_path, "*", tmp_path / "names")
        assert [files.names[i] for i in range(len(files))] == ["a", "b", "namesake"]
        (tmp_path / "names.of").unlink()
    (tmp_path / "b").unlink()
    with pytest.raises(rb.JobError, match=r"b is in the list of names"):
        files[1]
    with pytest.raises(rb.SettingError, match="there is no folder"):
        MappedFolder(tmp_path / "none", "*", tmp_path / "other")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(500):
        (many / f"{number:03d}").touch()
    code = (
        "import sys; from rightbatch.data.loading.mapped import MappedFolder; "
        f"print(len(MappedFolder({str(many)!r}, '*', {str(tmp_path / 'list')!r})))"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [child.communicate()[0].split() for child in racing] == [[b"500"]] * 3


def test_a_state_of_other_contents_on_disk_is_refused(tmp_path: Path) -> None:
    rows, lines = tmp_path / "rows.npy", tmp_path / "lines.txt"
    states = []
    for number in range(2):
        np.save(rows, np.full((100, 3), number))
        lines.write_text(f"line {number}\n" * 50)
        sources = MappedRows(rows), MappedLines(lines)
        for source in sources:
            stream = rb.BatchStream(source, 4, collate_fn=list)
            states.append(stream.state_dict())
            copied = pickle.loads(pickle.dumps(source))
            assert copied._fingerprint == source._fingerprint
            if number:
                with pytest.raises(rb.SettingError, match="another data set"):
                    stream.load_state_dict(states[len(states) - 3])
    (tmp_path / "lines.txt.lines").unlink()  # its stamp is left
    assert MappedLines(lines)[49] == "line 1"


@pytest.mark.parametrize(
    "array",
    [np.array(3), np.arange(4).astype(">i8"), np.array(["a", "b"])],
    ids=["one number", "another machine's", "text"],
)
def test_arrays_that_torch_cannot_take_are_refused(
    array: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(rb.SettingError, match="rows of numbers"):
        MappedRows(tmp_path / "a.npy")


def test_other_files_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    (tmp_path / "raw").write_bytes(b"12345678")
    with pytest.raises(rb.SettingError, match=r"no \.npy file"):
        MappedRows(tmp_path / "a.npz")
    with pytest.raises(rb.SettingError, match="whole number of rows"):
        MappedRows(tmp_path / "raw", np.float32, (0,))


@pytest.mark.parametrize("ranks", [2, 4])
def test_real_processes_share_out_each_step(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(HERE / "feeding_ranks.py")]
    done = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
    )
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
