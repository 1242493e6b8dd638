"""Reading batches from disk takes the memory of a batch, whatever the data's size."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.data.loading.stream import BatchStream
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot

NUMBERS = 1024  # of an example: 4 KiB
SIZES = (512, 2048, 8192)  # of the data set: 2 to 32 MiB on disk
STEPS = 6  # read: later ones take no more
MIB = 2**20


class OnDisk:
    """A map-style data set over a file: an example is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.rows[index])


def peak_of_reading(opened: Any, path: Path, batch: int, seed: int) -> int:
    """Most bytes that Python and numpy held while data was opened and streamed."""
    tracemalloc.start()
    try:
        data = opened(path)
        stream = BatchStream(data, batch, seed=seed, tail="carry", collate_fn=np.stack)
        for made, _ in enumerate(stream, 1):
            if made == STEPS:
                break
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run(trial: Trial) -> Seen:
    """Peak memory over the size of the data set, streamed and read whole."""
    sizes = trial.size(SIZES, (*SIZES, 65536))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.npy" for n in sizes]
        for path, n in zip(paths, sizes, strict=True):
            shape = (n, NUMBERS)
            np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
        trial.tell("reading")
        seed = trial.seed
        peak_of_reading(OnDisk, paths[0], 64, seed)  # the first fills caches
        streamed = [peak_of_reading(OnDisk, path, 64, seed) for path in paths]
        whole = [
            peak_of_reading(lambda p: list(np.load(p)), path, 64, seed)
            for path in paths
        ]
        batches = [peak_of_reading(OnDisk, paths[1], b, seed) for b in (256, 512, 1024)]
        small, middle, large = batches
    growth, read_first = streamed[2] / streamed[0], whole[2] / whole[0]
    added = (large - middle) / (middle - small)
    checks = (
        at_most("peak, 16 N over N", 1.1, growth, wrong={"file first": read_first}),
        equals(
            "b + 512 over b + 256", 2.0, added, margin=0.3, wrong={"b squared": 4.0}
        ),
    )
    disk = [n * NUMBERS * 4 / MIB for n in sizes]
    series = [
        Series("streamed, b = 64", sizes, [p / MIB for p in streamed], "points"),
        Series("file read first", sizes, [p / MIB for p in whole], "points"),
        Series("size on disk", sizes, disk, "dashed"),
    ]
    chart = plot(series, "examples N", "peak memory (MiB)", log="xy")
    caption = "Streaming takes the memory of a batch; reading first, the file's."
    zh = "流式读取只占一个批量的内存；先读入则占整个文件。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="streaming-memory",
    texts=("3 实践的驱动力：内存与计算效率: small pieces get around memory's limit",),
    theory="peak = a + c b, with no N in it",
    verdict="holds",
    seconds=1,
    power="counted to the byte over 2 to 32 MiB on disk; --full goes on to 256 MiB",
    en=Words(
        title="Memory does not grow with the data set when batches are streamed",
        claimed="Mini-batches break any data into pieces; memory is needed for one "
        "piece only.",
        assumed="Examples are read when they are asked for, and so is their order: a "
        "shuffled list of N numbers would grow too.",
        seen="Growing files are read in shuffled order and all memory handed out is "
        "counted. The peak follows the batch alone; a file read first takes the whole "
        "of it.",
    ),
    zh=Words(
        title="流式读取时，内存不随数据集增长",
        claimed="小批量把任意大的数据分成小份，内存只需容纳一份。",
        assumed="样本与顺序都在需要时才产生：打乱的 N 个编号的列表同样会增长。",
        seen="打乱地读取越来越大的文件并统计全部内存：峰值只随批量变化；先读入则占用整"
        "个文件。",
    ),
    run=run,
)
