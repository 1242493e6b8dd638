"""Reading batches from disk takes the memory of a batch, whatever the data's size."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.data.loading.stream import BatchStream
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot

NUMBERS = 1024  # of an example: 4 KiB
SIZES = (512, 2048, 8192)  # of the data set: 2 to 32 MiB on disk
BATCHES = (256, 512, 1024)
STEPS = 6  # read of an epoch: later ones take no more


class OnDisk:
    """A map-style data set over a file: an example is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.rows[index])


def on_disk(folder: Path, examples: int) -> Path:
    """A file of so many examples, written a row at a time."""
    path = folder / f"{examples}.npy"
    shape = (examples, NUMBERS)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for i in range(examples):
        rows[i] = i
    rows.flush()
    return path


def peak_of_reading(data: Callable[[], Any], batch: int, seed: int) -> int:
    """Most bytes that Python and numpy held while a stream was opened and read."""
    tracemalloc.start()
    try:
        stream = BatchStream(
            data(), batch, seed=seed, tail="carry", collate_fn=np.stack
        )
        for step, _ in enumerate(stream, 1):
            if step == STEPS:
                break
        stream.close()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run(trial: Trial) -> Seen:
    """Peak memory over the size of the data set, streamed and read whole."""
    sizes = trial.size(SIZES, (*SIZES, 65536))
    with tempfile.TemporaryDirectory() as name:
        paths = [on_disk(Path(name), n) for n in sizes]
        peak_of_reading(lambda: OnDisk(paths[0]), 16, trial.seed)  # fills caches
        trial.tell("streaming")
        streamed = [
            peak_of_reading(lambda path=path: OnDisk(path), 64, trial.seed)
            for path in paths
        ]
        trial.tell("reading whole files first")
        whole = [
            peak_of_reading(lambda path=path: list(np.load(path)), 64, trial.seed)
            for path in paths
        ]
        by_batch = [
            peak_of_reading(lambda: OnDisk(paths[1]), b, trial.seed) for b in BATCHES
        ]
    bytes_of = [n * NUMBERS * 4 for n in sizes]
    checks = (
        at_most(
            "peak memory, 16 times the examples over once, streamed",
            1.1,
            streamed[2] / streamed[0],
            wrong={"the file read first": whole[2] / whole[0]},
        ),
        equals(
            "peak memory added from b = 512 to 1024 over that from 256 to 512",
            2.0,
            (by_batch[2] - by_batch[1]) / (by_batch[1] - by_batch[0]),
            within=0.15,
            wrong={"one example at a time": 0.0, "square of the batch": 4.0},
        ),
        at_least(
            "data on disk over peak memory, largest file",
            8.0,
            bytes_of[2] / streamed[2],
            wrong={"the file read first": bytes_of[2] / whole[2]},
        ),
    )
    chart = plot(
        [
            Series("streamed, b = 64", sizes, [p / 2**20 for p in streamed], "points"),
            Series("file read first", sizes, [p / 2**20 for p in whole], "points"),
            Series("size on disk", sizes, [p / 2**20 for p in bytes_of], "dashed"),
        ],
        "examples N in the data set",
        "peak memory (MiB)",
        log="xy",
    )
    return Seen(
        checks,
        (
            Chart(
                "Streaming takes the memory of a batch; reading first, that of the "
                "file.",
                "流式读取只占一个批量的内存；先读入则占整个文件的内存。",
                chart,
            ),
        ),
    )


CLAIM = Claim(
    id="streaming-memory",
    texts=(
        "3 实践的驱动力：内存与计算效率: small pieces get around the limit of memory",
        "3 实践的驱动力：内存与计算效率: data of petabytes cannot be read at once",
    ),
    theory="peak = a + c b, with no N in it",
    verdict="holds",
    seconds=1,
    power="counted to the byte over 2 to 32 MiB on disk; --full goes on to 256 MiB",
    en=Words(
        title="Memory does not grow with the data set when batches are streamed",
        claimed="Mini-batches break data of any size into pieces, so that memory is "
        "needed for one piece only.",
        assumed="Examples are read when they are asked for, and so is their order: a "
        "shuffled list of N numbers would grow too.",
        seen="Files of growing size are read in shuffled order while all memory handed "
        "out by Python and numpy is counted. The peak stays where it was and follows "
        "the batch alone; reading the file first takes the whole of it.",
    ),
    zh=Words(
        title="流式读取时，内存不随数据集增长",
        claimed="小批量把任意大的数据分成小份，所以内存只需容纳一份。",
        assumed="样本在需要时才读取，顺序也是如此：一张打乱的 N 个编号的列表同样会增"
        "长。",
        seen="以打乱的顺序读取越来越大的文件，并统计 Python 与 numpy 分配的全部内存：峰"
        "值不变，只随批量变化；若先读入文件，则要占用整个文件的大小。",
    ),
    run=run,
)
