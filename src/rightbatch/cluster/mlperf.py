"""Reading what MLPerf publishes: reference convergence points and result logs."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch.core.errors import RunFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """One run, or several alike, to the same target.

    Attributes:
        workload: As the file names it.
        batch_size: Global batch.
        examples: To the target, in ``unit``.
        unit: ``"epochs"``, ``"samples"``, ``"tokens"`` or ``"steps"``.
        runs: How many stand behind it.
        seconds: Wall time from start to stop, where the file tells.
    """

    workload: str
    batch_size: int
    examples: float
    unit: str
    runs: int
    seconds: float | None = None


# What "Epochs to converge" counts: for some workloads not epochs [cited: the files'
# own evaluation intervals; read of them in mlperf_logging/rcp_checker].
_SAMPLES = ("bert", "llama", "flux", "gpt_oss", "deepseek", "qwen", "stable_diffusion")


def from_rcp_json(path: str | Path) -> list[Convergence]:
    """Reference convergence points of an MLCommons ``rcps_*.json``.

    Means without the best and the worst run, as MLPerf scores them.

    Raises:
        RunFolderError: The file cannot be read, or is none of these.
    """
    document = _json(Path(path))
    found = []
    for name, record in document.items():
        try:
            workload, batch = str(record["Benchmark"]), int(record["BS"])
            runs = sorted(float(x) for x in record["Epochs to converge"])
            if batch < 1 or not runs or not all(0 < x < math.inf for x in runs):
                raise ValueError(f"batch {batch}, runs {runs}")
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{path} is no file of reference convergence points",
                seen=f"record {name!r}: {error!r}"[:120],
                fix="rcps_*.json from mlperf_logging/rcp_checker",
            ) from error
        middle = runs[1:-1] if len(runs) > 2 else runs
        unit = "samples" if workload.startswith(_SAMPLES) else "epochs"
        unit = "tokens" if workload == "gpt3" else unit
        found.append(
            Convergence(
                workload=workload,
                batch_size=batch,
                examples=sum(middle) / len(middle),
                unit=unit,
                runs=len(runs),
            )
        )
    return sorted(found, key=lambda c: (c.workload, c.batch_size))


MOST_EPOCHS = 10_000  # no run counts so many [assumed]
_LINE = re.compile(r":::MLLOG\s+(\{.*\})")


def from_mllog(path: str | Path) -> Convergence:
    """The result of one run from its MLPerf log (lines with ``:::MLLOG``).

    Raises:
        RunFolderError: The file cannot be read, the run has not ended in success, or
            its batch or length is not in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error)) from error
    events = list(_events(text.splitlines()))
    keyed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        keyed[str(event.get("key"))].append(event)
    stops = [e for e in keyed["run_stop"] if _about(e).get("status") == "success"]
    if not keyed["global_batch_size"] or not keyed["run_start"] or not stops:
        raise RunFolderError(
            f"{path} does not tell of a run that reached its target",
            seen=f"{len(events)} MLLOG lines, keys "
            f"{sorted(k for k in keyed if keyed[k])[:6]}",
            why="it needs global_batch_size, run_start, and run_stop with success",
        )
    start, stop = keyed["run_start"][-1], stops[-1]
    length, unit = _length(stop, keyed)
    if length is None:
        raise RunFolderError(
            f"{path} does not say after how many examples the run ended",
            seen="neither samples_count nor epoch_num in run_stop or eval_accuracy",
        )
    named = keyed["submission_benchmark"]
    try:
        batch = int(keyed["global_batch_size"][-1]["value"])
        seconds = (float(stop["time_ms"]) - float(start["time_ms"])) / 1000
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path} has a damaged line", seen=f"{error!r}"[:120]
        ) from error
    if unit == "epochs" and length > MOST_EPOCHS:
        unit = "samples"  # bert's logs give samples by that name
    return Convergence(
        workload=str(named[0].get("value")) if named else Path(path).stem,
        batch_size=batch,
        examples=length,
        unit=unit,
        runs=1,
        seconds=seconds,
    )


def _events(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        try:
            event = json.loads(match.group(1))
        except ValueError:
            continue  # a line torn by another process's output
        if isinstance(event, dict):
            yield event


def _about(event: dict[str, Any]) -> dict[str, Any]:
    about = event.get("metadata")
    return about if isinstance(about, dict) else {}


def _length(
    stop: dict[str, Any], keyed: dict[str, list[dict[str, Any]]]
) -> tuple[float | None, str]:
    """Where the run ended: by run_stop itself, else by the last evaluation."""
    for event in (stop, *reversed(keyed["eval_accuracy"])):
        for key, unit in (("samples_count", "samples"), ("epoch_num", "epochs")):
            value = _about(event).get(key)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and value > 0:
                return float(value), unit
    return None, ""


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error)[:120]) from error
    if not isinstance(document, dict):
        raise RunFolderError(f"{path} holds no records", seen=type(document).__name__)
    return document
