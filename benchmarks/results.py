"""Figures that the docs quote, as JSON beside the tables: ``benchmarks/results/``."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rightbatch.core.json_io import to_plain, write_text
from rightbatch.core.machine import summary

FOLDER = Path(__file__).parent / "results"


def write_json(name: str, payload: Mapping[str, Any]) -> Path:
    """Write ``benchmarks/results/NAME.json`` and say so.

    The file holds the date, the version of torch, the machine, the command line and
    ``results``, the payload. An earlier file of this name is replaced. Under torchrun
    only the first rank should call this.

    Args:
        name: Benchmark and variant, such as ``"accumulation-4-ranks"``.
        payload: Plain values: dicts, lists, tuples, dataclasses, strings, numbers.
            Infinite and NaN floats become strings that ``float()`` reads back.

    Returns:
        The path of the file.
    """
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": summary(),
        "command": command_line(),
        "results": to_plain(dict(payload)),
    }
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(f"written to benchmarks/results/{path.name}", flush=True)
    return path


def command_line() -> str:
    """The command as one would type it in the repository; folders shortened."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    start = f"torchrun --nproc-per-node {ranks}" if ranks > 1 else "python"
    return shlex.join([*start.split(), script, *arguments])
