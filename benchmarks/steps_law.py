"""The law of steps on real, published runs: fit, and prediction of the largest batch.

Reads MLPerf reference convergence points and the measured steps of Zhang et al. 2024
(arXiv:2410.21676). Each workload is fitted; then its largest batch is left out and
predicted from the others. A workload that cannot tell its critical batch is refused.

    python benchmarks/steps_law.py DATA_FOLDER
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import rightbatch as rb
from results import write_json

Runs = list[tuple[float, float]]  # (batch size, examples to the target in its unit)
# Workloads whose record changed its unit, or shares its name with another one.
SPLIT_BY_UNIT = ("unet3d", "stable_diffusion")


def mlperf(path: Path) -> dict[str, Runs]:
    """Runs by workload. The unit of examples only moves S_min, not B_crit."""
    found: dict[str, Runs] = defaultdict(list)
    for row in csv.DictReader(path.open(encoding="utf-8")):
        name = row["benchmark"]
        if name in SPLIT_BY_UNIT:
            name += f" ({row['unit']})"
        if name == "ssd" and row["version"].startswith("1."):
            name += " (v1)"
        found[name].append((float(row["batch_size"]), float(row["olympic_mean"])))
    # The same workload stands under two names where it was renamed.
    distinct: dict[tuple[tuple[float, float], ...], str] = {}
    for name, runs in found.items():
        distinct.setdefault(tuple(sorted(runs)), name)
    return {name: list(runs) for runs, name in distinct.items()}


def zhang(path: Path) -> dict[str, Runs]:
    """Runs by model size: sequences to the target loss."""
    found: dict[str, Runs] = defaultdict(list)
    for row in csv.DictReader(path.open(encoding="utf-8")):
        batch = float(row["batch_sequences"])
        found[f"lm {row['model']}"].append((batch, batch * float(row["steps_wandb"])))
    return found


def fit(runs: Runs) -> rb.StepsLaw:
    """The law of these runs."""
    return rb.fit_steps([b for b, _ in runs], [e / b for b, e in runs])


def judge(workloads: dict[str, Runs]) -> dict[str, Any]:
    """Print a line a workload, and the medians over those with 4 batches or more."""
    r_squared, errors, refused, held_refused = [], [], [], []
    table: dict[str, dict[str, Any]] = {}
    print(
        f"{'workload':<26}{'n':>3}{'B_crit':>11}  {'95 %':<22}{'R2':>6}{'held out':>10}"
    )
    for name, runs in sorted(workloads.items()):
        runs = sorted(runs)
        sizes = len({b for b, _ in runs})
        try:
            law = fit(runs)
        except rb.UnidentifiedError as error:
            refused.append(name)
            print(f"{name:<26}{sizes:>3}  refused: {error.why or error.seen}")
            continue
        held = ""
        if sizes >= 4:
            r_squared.append(law.r_squared)
            (batch, truth), rest = runs[-1], runs[:-1]
            try:
                error = fit(rest).predict(batch) * batch / truth - 1
                errors.append(abs(error))
                held = f"{error:+.1%}"
            except rb.UnidentifiedError:
                held_refused.append(name)
                held = "refused"
        c = law.critical_batch
        table[name] = {
            "sizes": sizes,
            "critical_batch": [c.value, c.low, c.high],
            "r_squared": law.r_squared,
            "held_out": held,
        }
        interval = f"{c.low:.4g} to {c.high:.4g}"
        print(
            f"{name:<26}{sizes:>3}{c.value:>11.4g}  {interval:<22}"
            f"{law.r_squared:>6.3f}{held:>10}"
        )
    print(
        f"\n4 batches or more, identified: {len(r_squared)}; median R2 in log examples "
        f"{statistics.median(r_squared):.3f}"
    )
    print(
        f"largest batch left out: {len(errors)} predicted, median error "
        f"{statistics.median(errors):.1%}; refused: {len(held_refused)}"
    )
    print(f"refused whole: {', '.join(refused)}\n")
    return {
        "median_r_squared": statistics.median(r_squared),
        "median_held_out_error": statistics.median(errors),
        "held_out": len(errors),
        "held_out_refused": held_refused,
        "refused": refused,
        "workloads": table,
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the two CSV files")
    data = parser.parse_args().data
    print("MLPerf reference convergence points")
    references = judge(mlperf(data / "mlperf_rcp.csv"))
    print("Zhang et al. 2024")
    language = judge(zhang(data / "zhang2024_steps.csv"))
    write_json("steps-law", {"mlperf": references, "zhang2024": language})


if __name__ == "__main__":
    main()
