"""Stream a Hugging Face data set whose transform draws random numbers, and resume.

pip install datasets
python examples/hugging_face_data.py
"""

import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb

try:
    import datasets
except ImportError as error:
    missing = rb.MissingExtraError(
        "this example needs Hugging Face datasets",
        seen=str(error),
        fix="pip install datasets",
    )
    sys.exit(str(missing))

WINDOW = 64


def masked(rows: dict[str, Any]) -> dict[str, Any]:
    """A sixth of the bytes hidden: others in each epoch."""
    ids = torch.tensor(rows["ids"])
    return {"ids": ids.masked_fill(torch.rand(ids.shape) < 1 / 6, 0), "n": rows["n"]}


text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()
windows = [list(text[i : i + WINDOW]) for i in range(0, len(text) - WINDOW, WINDOW)]
table = datasets.Dataset.from_dict({"ids": windows, "n": list(range(len(windows)))})
data = table.with_transform(masked)

stream = rb.BatchStream(data, batch_size=32, seed=1)
while stream.step < 5:
    next(iter(stream))
state = stream.state_dict()
rest = torch.cat([batch["ids"] for batch in stream])

# Another process, another batch size: the same examples, masked at the same places.
again = rb.BatchStream(data, batch_size=48, seed=1, num_workers=2)
again.load_state_dict(state)
again.batch_size = 48
same = torch.equal(torch.cat([batch["ids"] for batch in again]), rest)
print(f"{len(data)} windows, {len(rest)} of them after the resume: alike: {same}")
again.close()
