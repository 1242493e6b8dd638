"""Examples per second through a whole loader, ours and the peers', by turns.

Each loader reads one epoch of each source in batches of 256, shuffled, as its manual
says; the first 20 batches are left out (workers start, caches fill). Wall seconds, for
workers are other processes; the figure is the median over rounds of the ratio to
torch's DataLoader in the same round, beside that one's own rate.

    .venv-peers/bin/pip install -c constraints.txt -e . torchdata==0.11.0 \
        datasets pillow scikit-learn albumentations
    .venv-peers/bin/python benchmarks/feed_loaders.py [--workers 0 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rightbatch as rb
from results import write_json

BATCH, WARM = 256, 20


class Rows(Dataset[Any]):
    """An array and a label, by hand: what most tutorials write."""

    def __init__(self, count: int) -> None:
        self.x = np.zeros((count, 64), dtype=np.float32)
        self.y = np.arange(count)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.x[index], int(self.y[index])


class NoisyRows(Rows):
    """The same, augmented by a little noise."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        x, y = super().__getitem__(index)
        return x + np.random.standard_normal(64).astype(np.float32), y


class Photos(Dataset[Any]):
    """Tiles of two real photographs as JPEG, cropped and flipped at random."""

    def __init__(self, count: int, side: int = 144) -> None:
        from PIL import Image
        from sklearn.datasets import load_sample_images

        self.files: list[bytes] = []
        numbers = random.Random(0)
        pictures = [Image.fromarray(p) for p in load_sample_images().images]
        for number in range(count):
            picture = pictures[number % 2]
            left = numbers.randrange(picture.width - side)
            top = numbers.randrange(picture.height - side)
            file = io.BytesIO()
            picture.crop((left, top, left + side, top + side)).save(file, "JPEG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> np.ndarray:
        """Decoded, shape ``(side, side, 3)``."""
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.files[index])))

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        left, top = random.randrange(16), random.randrange(16)
        tile = self.picture(index)[top : top + 128, left : left + 128]
        flipped = tile[:, ::-1] if random.random() < 0.5 else tile
        return np.ascontiguousarray(flipped.transpose(2, 0, 1)), index % 2


class Albumented(Photos):
    """The same by Albumentations, which keeps generators of its own."""

    def __init__(self, count: int) -> None:
        import albumentations

        super().__init__(count)
        self.change = albumentations.Compose(
            [albumentations.RandomCrop(128, 128), albumentations.HorizontalFlip()]
        )

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        tile = self.change(image=self.picture(index))["image"]
        return np.ascontiguousarray(tile.transpose(2, 0, 1)), index % 2


def arrow(count: int, noisy: bool) -> Any:
    """Hugging Face: windows of Python's own library as bytes, memory-mapped."""
    import datasets

    library = Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
    text = b"".join(path.read_bytes() for path in sorted(library))
    step = max(1, (len(text) - 128) // count)
    rows = [list(text[i * step : i * step + 128]) for i in range(count)]
    made = datasets.Dataset.from_dict(
        {"ids": rows, "n": list(range(count))},
        features=datasets.Features(
            {
                "ids": datasets.Sequence(datasets.Value("int64"), 128),
                "n": datasets.Value("int64"),
            }
        ),
    )
    if not noisy:
        return made.with_format("torch")

    def masked(batch: Any) -> Any:
        ids = torch.tensor(batch["ids"])
        return {"ids": ids * (torch.rand(ids.shape) > 0.15), "n": batch["n"]}

    return made.with_transform(masked)


SOURCES: dict[str, Callable[[], Any]] = {
    "TensorDataset": lambda: TensorDataset(
        torch.zeros(400_000, 64), torch.arange(400_000)
    ),
    "rows of an array": lambda: Rows(200_000),
    "the same, with noise": lambda: NoisyRows(100_000),
    "Hugging Face, torch format": lambda: arrow(60_000, noisy=False),
    "Hugging Face, random transform": lambda: arrow(30_000, noisy=True),
    "JPEG, random crop and flip": lambda: Photos(12_000),
    "the same by Albumentations": lambda: Albumented(12_000),
}


def torch_loader(data: Any, workers: int) -> Iterable[Any]:
    """Torch's."""
    return DataLoader(data, BATCH, shuffle=True, num_workers=workers)


def stateful(data: Any, workers: int) -> Iterable[Any]:
    """torchdata's, which can resume."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(data, BATCH, shuffle=True, num_workers=workers)


def ours(data: Any, workers: int) -> Iterable[Any]:
    """Ours, as it comes."""
    return rb.BatchStream(data, BATCH, num_workers=workers)


def ours_without(data: Any, workers: int) -> Iterable[Any]:
    """Ours without a randomness for each example."""
    return rb.BatchStream(data, BATCH, num_workers=workers, seeded=False)


LOADERS: dict[str, Callable[[Any, int], Iterable[Any]]] = {
    "DataLoader": torch_loader,
    "rightbatch": ours,
    "rightbatch, seeded=False": ours_without,
    "StatefulDataLoader": stateful,
}


def rate(loader: Iterable[Any]) -> float:
    """Examples per second behind the first batches."""
    batches: Iterator[Any] = iter(loader)
    gc.collect()
    gc.freeze()  # a full collection among the libraries' objects costs 100 ms
    for _ in range(WARM):
        next(batches)
    began, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
    seconds = time.perf_counter() - began
    if isinstance(loader, rb.BatchStream):
        loader.close()
    return count * BATCH / seconds


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="sources whose name has this in it")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name, make in SOURCES.items():
        if chosen.only and chosen.only not in name:
            continue
        data = make()
        for workers in chosen.workers:
            rates: dict[str, list[float]] = {loader: [] for loader in LOADERS}
            for _ in range(chosen.rounds):
                for loader, build in LOADERS.items():
                    rates[loader].append(rate(build(data, workers)))
            base = rates["DataLoader"]
            row: dict[str, Any] = {"source": name, "workers": workers}
            row["DataLoader examples/s"] = statistics.median(base)
            shown = [f"{name}, {workers} workers: {statistics.median(base):,.0f}/s"]
            for loader in list(LOADERS)[1:]:
                ratios = [a / b for a, b in zip(rates[loader], base, strict=True)]
                low, *_, high = sorted(ratios)
                shown.append(
                    f"{loader} {statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"
                )
                row[loader] = {
                    "ratio": statistics.median(ratios),
                    "low": low,
                    "high": high,
                }
            print("; ".join(shown), flush=True)
            table.append(row)
    name = f"feed-loaders-{chosen.only}" if chosen.only else "feed-loaders"
    write_json(name, {"batch": BATCH, "rounds": chosen.rounds, "sources": table})


if __name__ == "__main__":
    main()
