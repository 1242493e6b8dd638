"""Train on rows that stay on disk, mapped into memory by numpy.

python examples/rows_on_disk.py
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import rightbatch as rb

COUNT, WIDTH = 20_000, 33  # rows of 32 inputs and a target


class Rows(Dataset):
    """A raw file of float32 rows, which every process maps for itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, path.stat().st_size // (4 * WIDTH)
        self.rows: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.rows is None:
            self.rows = np.memmap(self.path, np.float32, "r", shape=(self.count, WIDTH))
        return torch.from_numpy(np.array(self.rows[index]))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"rows": None}  # a worker gets the path, not the contents


if __name__ == "__main__":
    path = Path(tempfile.mkdtemp()) / "rows.bin"
    numbers = np.random.default_rng(0)
    inputs = numbers.normal(size=(COUNT, WIDTH - 1))
    target = inputs @ numbers.normal(size=WIDTH - 1) + numbers.normal(size=COUNT)
    np.column_stack([inputs, target]).astype(np.float32).tofile(path)
    model = torch.nn.Linear(WIDTH - 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    # The size alone would not tell another file of as many rows.
    options = {"num_workers": 2, "fingerprint": str(path.stat().st_mtime_ns)}
    with rb.BatchStream(Rows(path), batch_size=64, **options) as stream:
        for batch in stream:
            loss = (model(batch[:, :-1]) - batch[:, -1:]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stream.step % 50 == 0:
                print(f"step {stream.step}: loss {loss:.3f} at B = {len(batch)}")
                stream.batch_size += 32
        print(f"{COUNT} rows in {stream.step} steps")
