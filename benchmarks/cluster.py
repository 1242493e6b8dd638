"""Planning a cluster on paper, against published results of real ones.

    python benchmarks/cluster.py DATA_FOLDER

MLPerf training v2.1: the cost of a step (fixed part and time per example) is fitted to
entries with at most 64 accelerators of one kind, the steps to the target are the law
of the reference convergence points, and the seconds of larger entries are predicted.
Nothing of the larger entries is used: neither their epochs nor their seconds.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import rightbatch as rb
from results import write_json
from rightbatch.cluster.devices import Fleet, Split, plan_cluster
from rightbatch.cluster.network import Network
from rightbatch.fit.critical_batch import NoiseLaw
from rightbatch.fit.step_time import TimeLaw
from steps_law import mlperf

SMALL = 64  # accelerators; larger entries are predicted
# Gradients of the models in float16, and the links of a DGX A100: eight adapters of 200
# Gb/s share what leaves a node; 5 us a message [assumed: the files do not tell].
PARAMETERS = {"resnet": 25.6e6, "rnnt": 49e6, "bert": 335e6, "maskrcnn": 44e6}
NETWORK = Network(bandwidth=8 * 200e9 / 8, latency_s=5e-6, source="assumed")
KINDS = ("H100", "A100", "A30", "V100", "Gaudi2")


@dataclass(frozen=True)
class Entry:
    """One published result."""

    submitter: str
    kind: str
    devices: int
    batch: int
    epochs: float
    seconds: float
    examples: float

    @property
    def step_s(self) -> float:
        """Seconds of a step, evaluation and all."""
        return self.seconds * self.batch / (self.epochs * self.examples)


def read(path: Path, benchmark: str, round_: str) -> list[Entry]:
    """The entries of one benchmark that name all that is needed."""
    found = []
    for row in csv.DictReader(path.open(encoding="utf-8")):
        if row["benchmark"] != benchmark or row["round"] != round_:
            continue
        kind = next((k for k in KINDS if k in row["model"]), "")
        numbers = [row[k] for k in ("acc", "global_batch_size", "ep_m", "sec")]
        if not kind or not all(numbers) or float(row["acc"]) < 1:
            continue
        devices, batch, epochs, seconds = map(float, numbers)
        if epochs > 1000 and row["samples"]:  # some logs count samples instead
            epochs /= float(row["samples"])
        if epochs <= 0 or not row["samples"]:
            continue
        found.append(
            Entry(
                row["submitter"],
                kind,
                int(devices),
                int(batch),
                epochs,
                seconds,
                float(row["samples"]),
            )
        )
    usual = statistics.mode(e.examples for e in found) if found else 0.0
    if benchmark == "bert":
        return found  # here the column holds the samples trained on
    return [replace(e, examples=usual) for e in found]  # the data set's length


def step_law(entries: list[Entry], bytes_: float) -> TimeLaw:
    """t0 + t1 b of one device, the exchange taken off; relative least squares."""
    local = np.array([e.batch / e.devices for e in entries])
    seconds = np.array([e.step_s for e in entries])
    columns = np.stack([np.ones_like(local), local], 1)
    weight = 1 / seconds
    best = np.array([0.0, 0.0])
    for _ in range(5):  # the exchange is covered by what computing it beside
        cover = 0.6 * (columns @ best) if best.any() else seconds
        exposed = np.array(
            [
                max(NETWORK.all_reduce_s(bytes_, e.devices) - c, 0.0)
                for e, c in zip(entries, cover, strict=True)
            ]
        )
        best, *_ = np.linalg.lstsq(
            columns * weight[:, None], (seconds - exposed) * weight, rcond=None
        )
        best = np.maximum(best, 1e-9)
    return TimeLaw(
        kind="affine",
        parameters=best,
        draws=best[None],
        held_out={},
        update_s=0.0,
        clock="wall",
        smallest=int(local.min()),
        largest=int(local.max()),
        n=len(entries),
    )


def predicted(
    entries: list[Entry], steps: rb.StepsLaw, benchmark: str, known: list[Entry]
) -> list[tuple[Entry, float, Fleet]]:
    """Seconds of the larger entries of each kind, from the smaller ones."""
    found = []
    bytes_ = 2 * PARAMETERS[benchmark]
    for kind in KINDS:
        small = [e for e in known if e.kind == kind and e.devices <= SMALL]
        large = [e for e in entries if e.kind == kind and e.devices > SMALL]
        if len({e.batch / e.devices for e in small}) < 3 or not large:
            continue
        law = step_law(small, bytes_)
        unit = 1.0 if benchmark == "bert" else small[0].examples
        critical = steps.critical_batch
        for entry in large:
            fleet = Fleet(
                time=law,
                noise=NoiseLaw(critical, np.array([critical.value])),
                most=law.largest,
                examples=int(entry.examples),
                gradient_bytes=bytes_,
                network=NETWORK,
                reference=entry.batch,
                steps=steps.predict(entry.batch) * unit,
            )
            split = Split(entry.devices, max(entry.batch // entry.devices, 1), 1)
            seconds = fleet.step_s(split) * fleet.steps_at(entry.batch)
            found.append((entry, seconds, fleet))
    return found


def main() -> None:
    """All benchmarks whose law and entries suffice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--round", default="v2.1")
    given = parser.parse_args()
    runs = mlperf(given.data / "mlperf_rcp.csv")
    written = {}
    for benchmark in PARAMETERS:
        entries = read(given.data / "mlperf_entries.csv", benchmark, given.round)
        points = runs[benchmark]  # in epochs; bert's in samples
        steps = rb.fit_steps([b for b, _ in points], [e / b for b, e in points])
        print(f"\n{benchmark} {given.round}: B_crit {steps.critical_batch}")
        rows = predicted(entries, steps, benchmark, entries)
        errors, lines = [], []
        for entry, seconds, fleet in rows:
            p = fleet.time.parameters
            error = seconds / entry.seconds - 1
            errors.append(abs(error))
            lines.append({"entry": entry, "predicted_s": seconds, "error": error})
            told = steps.predict(entry.batch) * entry.batch
            was = entry.epochs * (entry.examples if benchmark == "bert" else 1)
            print(
                f"  {entry.submitter[:8]:8} {entry.kind:5} x {entry.devices:<5} "
                f"B {entry.batch:<6} {seconds:6.0f} s, was {entry.seconds:6.0f} s "
                f"{error:+6.0%}   examples {told / was - 1:+4.0%}   "
                f"t0 {1e3 * p[0]:.2f} ms, t1 {1e6 * p[1]:.0f} us"
            )
        if errors:
            print(f"  median error {statistics.median(errors):.0%} of {len(errors)}")
        written[benchmark] = {
            "critical_batch": steps.critical_batch.value,
            "median_error": statistics.median(errors) if errors else None,
            "entries": lines,
        }
        groups = defaultdict(list)
        for entry, _, fleet in rows:
            groups[entry.kind].append(fleet)
        for kind, fleets in groups.items():
            cluster = plan_cluster(fleets[0], [2**i for i in range(14)])
            best = cluster.best
            print(
                f"  {kind}: pays up to {best.devices} devices (B = "
                f"{best.batch_size}, {best.time.value:.0f} s): {cluster.reason}"
            )
    write_json(f"cluster-{given.round}", written)


if __name__ == "__main__":
    main()
