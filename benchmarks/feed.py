"""Indices, memory and resume: ours and the peers', each in a process of its own.

Every source hands out batches of 256 indices as a DataLoader consumes them. Sources
take turns; a figure is the median over the rounds. Seconds are CPU seconds of one
thread; memory is the growth of the process's high-water mark.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt -e . torchdata==0.11.0 \
        pytorch-metric-learning==2.9.0 grain==0.2.18 sentence-transformers
    .venv-peers/bin/python benchmarks/feed.py indices        # some minutes
    .venv-peers/bin/python benchmarks/feed.py pairs          # P x K at 10 million
    .venv-peers/bin/python benchmarks/feed.py distinct       # no key twice in a batch
    .venv-peers/bin/python benchmarks/feed.py tokens         # padding against noise
    .venv-peers/bin/python benchmarks/feed.py orders         # a stored permutation?
    .venv-peers/bin/python benchmarks/feed.py change         # a new batch size
    .venv-peers/bin/python benchmarks/feed.py disk           # 20 GB of rows
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import rightbatch as rb
from results import write_json
from rightbatch.data.loading.batch_sampler import BatchSampler as OurSampler

BATCH, MOST = 256, 4_000_000  # indices looked at
Batches = Iterator[Any]


def ours(length: int, skip: int) -> Batches:
    """A batch sampler of lists, for anybody's loader."""
    sampler = OurSampler(length, BATCH)
    if skip:
        state = sampler.state_dict()
        sampler.load_state_dict(state | {"position": skip * BATCH, "step": skip})
    return iter(sampler)


def ours_strata(length: int, skip: int) -> Batches:
    """One per cent of the examples an eighth of each batch."""
    labels = np.zeros(length, dtype=np.int8)
    labels[::100] = 1
    order = rb.data.Strata(labels, {1: min(BATCH // 8, length // 200)})
    stream = rb.BatchStream(_Nothing(length), BATCH, order=order)
    counts = order.counts_at(BATCH).tolist()
    drawn = [skip * count for count in counts]
    state = stream.state_dict()
    state |= {"position": skip * BATCH, "extra": drawn + state["extra"][2:]}
    stream.load_state_dict(state)
    plan, cursor = stream._planner, stream._cursor

    def batches() -> Batches:
        at = cursor
        while True:
            step = plan.plan(at, BATCH)
            at = step.after
            yield step.cut.indices.tolist()

    return batches()


def torch_random(length: int, skip: int) -> Batches:
    """What DataLoader(shuffle=True) does; a resume replays."""
    sampler = BatchSampler(RandomSampler(range(length)), BATCH, drop_last=False)
    return itertools.islice(iter(sampler), skip, None)


def torchdata(length: int, skip: int) -> Batches:
    """StatefulDataLoader's samplers, resumed by their own state."""
    from torchdata.stateful_dataloader import sampler as own

    def make() -> Any:
        return iter(own.BatchSampler(own.RandomSampler(range(length)), BATCH, False))

    made = make()
    if skip:
        next(made)
        state = made.state_dict()
        for part in (state, state.get("sampler_iter_state", {})):
            for name in ("samples_yielded", "yielded"):
                if name in part:
                    part[name] = skip * BATCH
        made = make()
        made.load_state_dict(state)
    return made


def grain(length: int, skip: int) -> Batches:
    """Grain's shuffle, its index for each position."""
    import grain.python as pygrain

    data = pygrain.MapDataset.range(length).shuffle(seed=0)
    return (
        [data[i] for i in range(start, min(start + BATCH, length))]
        for start in range(skip * BATCH, length, BATCH)
    )


SOURCES: dict[str, Callable[[int, int], Batches]] = {
    "rightbatch": ours,
    "rightbatch strata": ours_strata,
    "torch RandomSampler": torch_random,
    "torchdata": torchdata,
    "grain": grain,
}


class _Nothing(Dataset[int]):
    """So many examples."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def peak() -> float:
    """High-water mark of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measure(name: str, length: int) -> dict[str, float]:
    """First batch, rate, memory, resume in the middle."""
    make = SOURCES[name]
    most = 200_000 if name == "grain" else MOST
    next(make(1000, 0))  # imports
    base, began = peak(), time.process_time()
    batches = make(length, 0)
    next(batches)
    first = time.process_time() - began
    began, count = time.process_time(), 0
    for batch in itertools.islice(batches, most // BATCH):
        count += len(batch)
    spent = time.process_time() - began
    memory = peak() - base
    del batches
    began = time.process_time()
    next(make(length, length // BATCH // 2))
    resume = time.process_time() - began
    return {
        "first batch s": first,
        "M indices/s": count / spent / 1e6,
        # An epoch begins with its first batch: what making the order costs counts.
        "M/s with it": length / (first + length * spent / count) / 1e6,
        "memory MB": memory,
        "resume s": resume,
    }


def indices(rounds: int) -> dict[str, Any]:
    """The table of sources."""
    tasks = [
        (name, length)
        for length in (10**6, 10**7, 10**8, 10**9)
        for name in SOURCES
        # What would need tens of GB or minutes is left out, and said.
        if not (name in ("torch RandomSampler", "torchdata") and length > 10**8)
        and not (name == "rightbatch strata" and length > 10**7)
    ]
    found: dict[tuple[str, int], list[dict[str, float]]] = {t: [] for t in tasks}
    for number in range(rounds):
        for name, length in tasks:
            if length >= 10**8 and number >= 2 and not name.startswith("rightbatch"):
                continue
            found[name, length].append(in_child(["one", name, str(length)]))
            print(".", end="", flush=True)
    print()
    keys = ["first batch s", "M indices/s", "M/s with it", "memory MB", "resume s"]
    print(f"{'N':>6} {'source':<20} " + " ".join(f"{k:>13}" for k in keys))
    table = []
    for (name, length), rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in keys}
        shown = [f"{m:.2g}" if m < 10 else f"{m:.1f}" for m in middle.values()]
        print(f"{length:6.0e} {name:<20} " + " ".join(f"{m:>13}" for m in shown))
        table.append({"examples": length, "source": name, **middle})
    return {"rounds": rounds, "medians": table}


def in_child(arguments: list[str], limit: float = 600) -> dict[str, float]:
    """What this file prints with these arguments."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"over s": limit}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_pairs(name: str) -> dict[str, float]:
    """First batch, and batches per second, of 32 classes with 8 examples each."""
    labels = torch.randint(
        100_000, (10**7,), generator=torch.Generator().manual_seed(0)
    )
    base, began = peak(), time.process_time()
    if name == "rightbatch":
        order = rb.data.Pairs(labels.numpy(), each=8)
        stream = rb.BatchStream((labels,), BATCH, order=order)
        batches: Batches = iter(stream.steps())

        def draw() -> Any:
            (micro,) = next(batches)
            return micro.data
    else:
        from pytorch_metric_learning.samplers import MPerClassSampler

        sampler = MPerClassSampler(labels, 8, BATCH, length_before_new_iter=10**7)
        single = iter(sampler)

        def draw() -> Any:
            return [next(single) for _ in range(BATCH)]

    draw()
    first = time.process_time() - began
    began = time.process_time()
    for _ in range(1000):
        draw()
    spent = time.process_time() - began
    return {
        "first batch s": first,
        "batches/s": 1000 / spent,
        "memory MB": peak() - base,
    }


def pairs(limit: float) -> dict[str, Any]:
    """P x K at ten million examples of 100,000 classes."""
    table = {}
    for name in ("rightbatch", "MPerClassSampler"):
        table[name] = in_child(["one-pairs", name], limit)
        print(f"{name:<18}", table[name])
    return table


def distinct() -> dict[str, Any]:
    """Batches without a repeated question, of 100,000 pairs with 30,000 questions."""
    from datasets import Dataset as Table
    from sentence_transformers.base.sampler import (  # pyrefly: ignore[missing-import]
        NoDuplicatesBatchSampler,
    )

    from rightbatch.data.order.distinct import Distinct

    generator = np.random.default_rng(0)
    questions = generator.integers(0, 30_000, 100_000)
    answers = 30_000 + np.arange(100_000)
    texts = Table.from_dict(
        {
            "question": [f"question {q}" for q in questions],
            "answer": [f"answer {a}" for a in answers],
        }
    )
    table = []
    for batch in (64, 1024, 4096):
        began = time.process_time()
        order = Distinct(np.stack([questions, answers], axis=1))
        sampler = OurSampler(100_000, batch, order=order)
        sizes = [len(b) for b in sampler]
        ours = time.process_time() - began
        began = time.process_time()
        theirs = NoDuplicatesBatchSampler(
            texts, batch, drop_last=False, generator=torch.Generator(), seed=0
        )
        others = [len(b) for b in theirs]
        spent = time.process_time() - began
        print(
            f"B = {batch}: rightbatch {ours:.2f} s an epoch, {len(sizes)} batches of "
            f"{min(sizes)} to {max(sizes)}; sentence-transformers {spent:.2f} s, "
            f"{len(others)} batches of {min(others)} to {max(others)}"
        )
        table.append(
            {
                "batch": batch,
                "rightbatch_s": ours,
                "rightbatch_smallest": min(sizes),
                "sentence_transformers_s": spent,
                "sentence_transformers_smallest": min(others),
            }
        )
    return {"epochs": table}


def tokens() -> dict[str, Any]:
    """What a window saves in padding, and what it costs in noise between steps."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5, 1, 200_000), 16, 2048).astype(int)
    print("padding, noise of a step's mean log length over that of a random batch")
    table = []
    for batch in (64, 256, 1024, 4096):
        for packed in (False, True):
            row = []
            for window in (None, 1024, 8192):
                order = rb.data.Tokens(lengths, 16_384, packed=packed, window=window)
                stream = rb.BatchStream(_Nothing(200_000), batch, order=order)
                found = rb.audit(stream, lengths=lengths)
                assert found.length_noise is not None
                noise = found.length_noise.value
                row.append(f"{found.padding:6.1%} {noise:6.2f}")
                table.append(
                    {
                        "batch": batch,
                        "packed": packed,
                        "window": window,
                        "padding": found.padding,
                        "length_noise": noise,
                    }
                )
            kind = "packed" if packed else "padded"
            print(f"B = {batch:5} {kind}  none, 1024, 8192:  " + " | ".join(row))
    return {"budget": 16_384, "steps": table}


def orders() -> dict[str, Any]:
    """Would a stored permutation be faster? Nanoseconds for each index of an epoch."""
    from rightbatch.data.order.epochs import Walk

    table: dict[str, Any] = {}
    for length in (10**4, 10**5, 10**6, 10**7):
        times: dict[str, list[float]] = {"computed": [], "numpy": [], "torch": []}
        for number in range(9):
            for name, found in times.items():
                began = time.process_time()
                repeats = max(1, 10**6 // length)
                for repeat in range(repeats):
                    seed = number * repeats + repeat
                    if name == "computed":
                        walk = Walk(length, seed)
                        for start in range(0, length, 256):
                            walk(start, min(start + 256, length))
                        continue
                    if name == "numpy":
                        stored = np.random.default_rng(seed).permutation(
                            np.arange(length, dtype=np.uint32)
                        )
                    else:
                        own = torch.Generator().manual_seed(seed)
                        stored = torch.randperm(
                            length, generator=own, dtype=torch.int32
                        ).numpy()
                    for start in range(0, length, 256):
                        stored[start : start + 256].astype(np.int64)
                found.append((time.process_time() - began) / repeats / length * 1e9)
        shown = {name: f"{statistics.median(t):.1f}" for name, t in times.items()}
        print(f"N = {length}: {shown}")
        table[str(length)] = {n: statistics.median(t) for n, t in times.items()}
    return {"ns_per_index": table}


class _Slow(Dataset[int]):
    """Examples of 0.2 ms each."""

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> int:
        until = time.perf_counter() + 2e-4
        while time.perf_counter() < until:
            pass
        return index


def change() -> dict[str, Any]:
    """When a batch size assigned in mid-epoch takes effect, and what it costs."""
    warnings.simplefilter("ignore")
    table: list[dict[str, Any]] = []
    for workers in (0, 2):
        sampler = BatchSampler(RandomSampler(range(100_000)), 32, drop_last=False)
        loader = DataLoader(_Slow(), batch_sampler=sampler, num_workers=workers)
        sizes, _ = changing(
            iter(loader), lambda b, s=sampler: setattr(s, "batch_size", b)
        )
        print(f"DataLoader, {workers} workers: {late(sizes)} steps late")
        table.append({"loader": "DataLoader", "workers": workers, "late": late(sizes)})
        for micro in (None, 16):
            stream = rb.BatchStream(
                _Slow(), 32, num_workers=workers, micro_batch=micro, seeded=False
            )

            def batches(stream: rb.BatchStream = stream) -> Iterator[Any]:
                for step in stream.steps():
                    yield torch.cat([m.data for m in step])

            sizes, times = changing(
                batches(), lambda b, s=stream: setattr(s, "batch_size", b)
            )
            plain = statistics.median(times[10:20])
            print(
                f"BatchStream, {workers} workers, micro_batch {micro}: {late(sizes)} "
                f"steps late; the step of the change takes {times[20] / plain:.2f} x, "
                f"twice the examples {statistics.median(times[30:]) / plain:.2f} x"
            )
            table.append(
                {
                    "loader": "BatchStream",
                    "workers": workers,
                    "micro_batch": micro,
                    "late": late(sizes),
                    "step_of_the_change": times[20] / plain,
                    "twice_the_examples": statistics.median(times[30:]) / plain,
                }
            )
            stream.close()
    return {"steps": table}


def changing(
    batches: Iterator[Any], assign: Callable[[int], None]
) -> tuple[list[int], list[float]]:
    """Sizes and seconds of 40 steps; the size is doubled before the 21st."""
    sizes, times = [], []
    for number in range(40):
        if number == 20:
            assign(64)
        began = time.perf_counter()
        sizes.append(len(next(batches)))
        times.append(time.perf_counter() - began)
    return sizes, times


def late(sizes: list[int]) -> int:
    """Steps from the change to the first of the new size."""
    return next((n for n, size in enumerate(sizes[20:]) if size == 64), -1)


def private_memory() -> float:
    """Private memory of this process in MB, the page cache left out."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) / 1000


class _MappedRows(Dataset[Any]):
    """Rows of a file that numpy maps into memory."""

    def __init__(self, path: Path, width: int) -> None:
        self._rows = np.memmap(path, np.float32, "r").reshape(-1, width)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rows[index]


def disk() -> dict[str, Any]:
    """A sparse file of 20 GB, read in random order."""
    with tempfile.TemporaryDirectory() as place:
        big = Path(place) / "big.bin"
        with big.open("wb") as file:
            file.truncate(20 * 1000**3)
        data = _MappedRows(big, 25)
        stream = rb.BatchStream(data, 256, collate_fn=list, seeded=False)
        marks: dict[str, float] = {}
        began = time.perf_counter()
        for number, _ in enumerate(stream):
            if number in (3, 20, 200, 1000):
                marks[str(number)] = private_memory()
            if number == 1000:
                break
        rate = stream.step * 256 / (time.perf_counter() - began)
    shown = ", ".join(f"{m:.0f}" for m in marks.values())
    print(
        f"{len(data)} rows, private memory {shown} MB along {stream.step} batches, "
        f"{rate:.0f} examples/s"
    )
    return {"rows": len(data), "private_mb_after_batch": marks, "rows_per_s": rate}


WHAT: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "indices": lambda given: indices(given.rounds),
    "pairs": lambda given: pairs(given.limit),
    "distinct": lambda given: distinct(),
    "tokens": lambda given: tokens(),
    "orders": lambda given: orders(),
    "change": lambda given: change(),
    "disk": lambda given: disk(),
}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*WHAT, "one", "one-pairs"])
    parser.add_argument("more", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "one":
        print(json.dumps(measure(given.more[0], int(given.more[1]))))
    elif given.what == "one-pairs":
        print(json.dumps(one_pairs(given.more[0])))
    else:
        write_json(f"feed-{given.what}", WHAT[given.what](given))


if __name__ == "__main__":
    main()
