"""Planning a cluster on paper, against published results of real ones.

    python benchmarks/cluster.py DATA_FOLDER

MLPerf training v2.1: the law of step time is fitted to entries with at most 64
accelerators of one kind, the steps to the target are the law of the reference
convergence points, and the seconds of larger entries are predicted with their interval.
Nothing of the larger entries is used: neither their epochs nor their seconds. Then
steps alone, of all benchmarks of the round, at four limits instead of 64.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import rightbatch as rb
from results import write_json
from rightbatch.cluster.devices import Fleet, Split, plan_cluster
from rightbatch.cluster.network import Network
from rightbatch.core.estimate import Estimate
from rightbatch.fit.critical_batch import DRAWS, NoiseLaw
from rightbatch.fit.step_time import TimeLaw, fit_time
from rightbatch.measure.measurements import TimePoint
from steps_law import mlperf

SMALL = 64  # accelerators; larger entries are predicted
# Gradients of the models in float16, and the links of a DGX A100: eight adapters of 200
# Gb/s share what leaves a node; 5 us a message [assumed: the files do not tell].
PARAMETERS = {"resnet": 25.6e6, "rnnt": 49e6, "bert": 335e6, "maskrcnn": 44e6}
NETWORK = Network(bandwidth=8 * 200e9 / 8, latency_s=5e-6, source="assumed")
KINDS = ("H100", "A100", "A30", "V100", "Gaudi2")
# Of which steps alone are judged: trained data parallel, with numbers that tell a step.
ALL = {
    "v0.7": ("bert", "gnmt", "maskrcnn", "resnet", "ssd", "transformer"),
    "v2.1": ("bert", "maskrcnn", "resnet", "rnnt", "ssd"),
}


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
    def local(self) -> float:
        """Examples of a step on one device."""
        return self.batch / self.devices

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


def step_law(entries: list[Entry]) -> TimeLaw:
    """The product's own law of step time, every entry a size timed once.

    The exchange of so few devices is covered by their computing.
    """
    points = []
    for entry in sorted(entries, key=lambda e: e.local):
        step_s = entry.step_s
        points.append(
            TimePoint(
                micro_batch=int(entry.local),
                step_time_s=Estimate.exact(step_s, "s"),
                process_time_s=Estimate.exact(step_s, "s"),
                update_time_s=0.0,
                fetch_time_s=0.0,
                rounds=(step_s,),
                process_rounds=(step_s,),
            )
        )
    return fit_time(points)


def steps_as_noise(steps: rb.StepsLaw) -> NoiseLaw:
    """The critical batch of the reference points, with draws of its interval."""
    critical = steps.critical_batch
    spread = math.log(critical.high / critical.low) / (2 * 1.96)
    draws = np.random.default_rng(0).normal(0.0, spread, DRAWS)
    return NoiseLaw(critical, critical.value * np.exp(draws))


def told(entries: list[Entry], most: int) -> list[tuple[list[Entry], list[Entry]]]:
    """Of every kind of device the entries to fit, and the larger ones to predict."""
    pairs = []
    for kind in KINDS:
        alike = [e for e in entries if e.kind == kind]
        small = [e for e in alike if e.devices <= most and e.local >= 1]
        large = [e for e in alike if e.devices > most]
        if len({e.local for e in small}) >= 3 and large:
            pairs.append((small, large))
    return pairs


def predicted(
    entries: list[Entry], steps: rb.StepsLaw, batches: list[float], benchmark: str
) -> list[tuple[Entry, Estimate | None, Fleet]]:
    """Seconds of the larger entries of each kind, from the smaller ones.

    None where a device has less than one example: no data parallel training.
    """
    found = []
    for small, large in told(entries, SMALL):
        law = step_law(small)
        unit = 1.0 if benchmark == "bert" else small[0].examples
        reference = round(statistics.geometric_mean(batches))
        for entry in large:
            fleet = Fleet(
                time=law,
                noise=steps_as_noise(steps),
                most=law.largest,
                examples=int(entry.examples),
                gradient_bytes=2 * PARAMETERS[benchmark],
                network=NETWORK,
                reference=reference,
                steps=steps.predict(reference) * unit,
                largest_trained=int(max(batches)),
            )
            seconds = None
            if entry.local >= 1:
                split = Split(entry.devices, int(entry.local), 1)
                seconds = fleet.time_to_result(split)
            found.append((entry, seconds, fleet))
    return found


def judge_steps(data: Path, round_: str) -> dict[str, Any]:
    """Steps alone, of all benchmarks: fitted to 8, 16, 32 or 64 devices and fewer."""
    errors, held = [], []
    for name in ALL[round_]:
        entries = read(data / "mlperf_entries.csv", name, round_)
        seen: set[tuple[str, int]] = set()
        for most in (8, 16, 32, 64):
            for small, large in told(entries, most):
                if (small[0].kind, len(small)) in seen:
                    continue  # the same fit as of the limit before
                seen.add((small[0].kind, len(small)))
                law = step_law(small)
                for entry in (e for e in large if e.local >= 1):
                    split = Split(entry.devices, int(entry.local), 1)
                    step = bare(law, entry.batch).time_to_result(split)
                    errors.append(abs(step.value / entry.step_s - 1))
                    held.append(step.low <= entry.step_s <= step.high)
    print(
        f"\nsteps alone: {len(errors)} predicted, median error "
        f"{statistics.median(errors):.0%}, inside their intervals {np.mean(held):.0%}"
    )
    return {
        "steps": len(errors),
        "median_error": statistics.median(errors),
        "inside": float(np.mean(held)),
    }


def bare(law: TimeLaw, batch: int) -> Fleet:
    """One step of a batch, whose gradients cost nothing."""
    return Fleet(
        time=law,
        noise=NoiseLaw(Estimate.exact(1.0, "examples"), np.ones(1)),
        most=law.largest,
        examples=10**9,
        gradient_bytes=1.0,
        network=NETWORK,
        reference=batch,
        steps=1.0,
    )


def main() -> None:
    """All benchmarks whose law and entries suffice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--round", default="v2.1")
    given = parser.parse_args()
    runs = mlperf(given.data / "mlperf_rcp.csv")
    written: dict[str, Any] = {}
    for benchmark in PARAMETERS:
        entries = read(given.data / "mlperf_entries.csv", benchmark, given.round)
        points = runs[benchmark]  # in epochs; bert's in samples
        steps = rb.fit_steps([b for b, _ in points], [e / b for b, e in points])
        print(f"\n{benchmark} {given.round}: B_crit {steps.critical_batch}")
        errors, held, lines = [], [], []
        groups: dict[str, Fleet] = {}
        batches = [b for b, _ in points]
        for entry, seconds, fleet in predicted(entries, steps, batches, benchmark):
            groups[entry.kind] = fleet
            head = f"  {entry.submitter[:8]:8} {entry.kind:5} x {entry.devices:<5} "
            head += f"B {entry.batch:<6} "
            if seconds is None:
                print(f"{head} refused: {entry.local:.2g} examples a device")
                continue
            error = seconds.value / entry.seconds - 1
            errors.append(abs(error))
            held.append(seconds.low <= entry.seconds <= seconds.high)
            lines.append({"entry": entry, "predicted_s": seconds, "error": error})
            of_examples = steps.predict(entry.batch) * entry.batch
            was = entry.epochs * (entry.examples if benchmark == "bert" else 1)
            below = fleet.time.smallest / entry.local
            print(
                f"{head}{seconds.value:6.0f} s ({seconds.low:.0f} to "
                f"{seconds.high:.0f}), was {entry.seconds:.0f} s {error:+.0%}   "
                f"examples {of_examples / was - 1:+.0%}   {max(below, 1):.1f} x below"
            )
        if errors:
            print(
                f"  median error {statistics.median(errors):.0%} of {len(errors)}, "
                f"{sum(held)} inside their intervals"
            )
        written[benchmark] = {
            "critical_batch": steps.critical_batch.value,
            "median_error": statistics.median(errors) if errors else None,
            "inside": sum(held),
            "entries": lines,
        }
        for kind, fleet in groups.items():
            cluster = plan_cluster(fleet, [2**i for i in range(14)])
            best = cluster.best
            beyond = ", beyond all batches run" if best.beyond else ""
            print(
                f"  {kind}: pays up to {best.devices} devices (B = {best.batch_size}"
                f"{beyond}, {best.time}): {cluster.reason}"
            )
    written["steps alone"] = judge_steps(given.data, given.round)
    write_json(f"cluster-{given.round}", written)


if __name__ == "__main__":
    main()
