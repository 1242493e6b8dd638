"""The command ``cluster``: one job on one device, planned for many."""

from __future__ import annotations

import math
import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rightbatch.cli.console import DECIDED, end_together, make_console, print_document
from rightbatch.cli.options import BANDWIDTH, JSON, LATENCY, MEMORY, PATH
from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from rightbatch.cluster.devices import Cluster, Fleet
    from rightbatch.cluster.network import Network
    from rightbatch.fit.critical_batch import NoiseLaw
    from rightbatch.measure.measurements import Measurements

BATCH_NORM = "RB109"  # the finding that splitting changes the model
GRADIENT_BYTES = 4  # of a parameter, where gradients are exchanged in float32
POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("measured", metavar="PLAN", type=PATH)
@click.option("--devices", default="1..64", show_default=True, help="1..64 or 1,2,6.")
@click.option("--bandwidth", type=BANDWIDTH, help="Of a node: 400Gb/s, 50GB/s.")
@click.option("--latency", type=LATENCY, help="Of a message: 20us.")
@click.option("--memory", type=MEMORY, help="Most memory a step may take.")
@click.option(
    "--steps", type=click.IntRange(1), help="Steps to the target at today's batch."
)
@click.option(
    "--evaluations",
    type=click.IntRange(0),
    help="Of a run; else as many as train makes.",
)
@click.option("--watts", type=POSITIVE, help="Power of one device.")
@click.option("--price", type=POSITIVE, help="Price of one device for an hour.")
@click.option("--gradient-bytes", type=MEMORY, help="Exchanged in a step: 400MB.")
@click.option("--prior", help="A published B_crit: resnet, lm:300M, ….")
@click.option("--measure", is_flag=True, help="Measure the network, under torchrun.")
@JSON
def cluster(
    measured: Path,
    devices: str,
    bandwidth: float | None,
    latency: float | None,
    measure: bool,
    as_json: bool,
    **job: Any,
) -> int:
    """Plan for many devices from the measurements of one.

    PLAN is a run folder. Says the best batch and its split for every number of
    devices, the time, energy and price, where more devices stop paying, and why.
    """
    from rightbatch.cluster.devices import elastic_batch, plan_cluster
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.terminal import print_plain

    counts = parse_devices(devices)
    measurements = _load(measured)
    network = _network(bandwidth, latency, measure)
    fleet = fleet_of(measurements, network, **job)
    planned = plan_cluster(fleet, counts)
    batch, sizes = elastic_batch(fleet, planned.best, max(counts))
    if measure and int(os.environ.get("RANK", "0")):
        pass  # the first rank speaks
    elif as_json:
        menu = {"batch_size": batch, "devices": sizes}
        print_document({"cluster": to_plain(planned), "elastic": menu})
    else:
        lines = cluster_lines(planned, fleet, measurements)
        lines += ["", *_paragraph(_elastic(batch, sizes))]
        print_plain(make_console(as_json), "\n".join(lines))
    return end_together(DECIDED, joined=measure)


def _load(measured: Path) -> Measurements:
    from rightbatch.measure.measurements import Measurements
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN

    if measured.name == PLAN:  # what it was decided from lies beside it
        measured = measured.parent
    return Measurements.load(measured / MEASUREMENTS if measured.is_dir() else measured)


def fleet_of(
    measurements: Measurements,
    network: Network,
    *,
    memory: float | None,
    steps: int | None,
    evaluations: int | None,
    watts: float | None,
    price: float | None,
    gradient_bytes: float | None,
    prior: str | None,
) -> Fleet:
    """The job of these measurements, on devices like the one they were made on.

    Raises:
        SettingError: There is no such prior, or nothing fits in the memory.
        UnidentifiedError: Times or noise were not measured.
    """
    from rightbatch.cluster.devices import Fleet
    from rightbatch.cluster.published import noise_of, prior_named
    from rightbatch.fit.step_time import fit_time
    from rightbatch.measure.run_progress import steps_to_target
    from rightbatch.memory.envelope import check_room, fit_points
    from rightbatch.plan.options import memory_limit
    from rightbatch.training.evaluation_time import EVALUATE_SHARE
    from rightbatch.training.loop import usual_evaluations

    job, limit = measurements.job, memory_limit(measurements, memory)
    time = fit_time(measurements.times, measurements.contention)
    most = time.largest
    if len(measurements.memory) >= 2:
        law = fit_points(measurements.memory)
        check_room(law, limit)
        most = min(most, law.largest(limit))
    timed = [p.micro_batch for p in measurements.times]
    published = prior_named(prior) if prior else None
    if steps is None:
        steps = steps_to_target(measurements)
    share = math.inf
    if evaluations is None:
        share = EVALUATE_SHARE
        evaluations = usual_evaluations(job.batch_size, (steps or 0) * job.batch_size)
    race = measurements.race
    lanes = () if race is None else race.lanes
    trained = max([job.batch_size, *(lane.batch_size for lane in lanes)])
    return Fleet(
        time=time,
        noise=_measured(measurements) if published is None else noise_of(published),
        most=most,
        examples=job.examples,
        gradient_bytes=gradient_bytes or GRADIENT_BYTES * job.parameters,
        network=network,
        reference=job.batch_size,
        steps=steps,
        evaluation_s=evaluations * (measurements.evaluate_s or 0.0),
        evaluation_share=share,
        allowed=_allowed(timed, most, job.coupled_batch),
        largest_trained=trained if published is None else published.largest,
        watts=watts,
        per_hour=price,
    )


def _allowed(timed: list[int], most: int, coupled: int | None) -> tuple[int, ...]:
    """The micro-batches that ran and fit; where examples touch, today's alone.

    Raises:
        SettingError: There is none.
    """
    sizes = timed if coupled is None else [coupled]
    allowed = tuple(size for size in sizes if size <= most)
    if not allowed:
        raise SettingError(
            "no micro-batch that may be planned fits in the memory allowed",
            seen=f"at most {most:,} examples at once; {min(sizes):,} are needed",
            why="fewer were not timed, or are another function where examples touch",
            fix="--memory with more",
        )
    return allowed


def _measured(measurements: Measurements) -> NoiseLaw:
    """The critical batch of these measurements.

    Raises:
        UnidentifiedError: Neither noise nor a race is in them.
    """
    from rightbatch.plan.laws import laws_of

    laws = laws_of(measurements)
    if not laws.measured:
        raise UnidentifiedError(
            "the critical batch is not known",
            seen="neither gradient noise nor a race in the measurements",
            why="how far a larger batch pays depends on it",
            fix="a larger --budget of tune, or --prior with a published job",
        )
    return laws.critical


def parse_devices(text: str) -> list[int]:
    """``"1..64"`` (doubling), ``"1,2,6"``, or both: ``"1..8,24"``.

    Raises:
        SettingError: It is none of these.

    Example:
        >>> parse_devices("1..8,12")
        [1, 2, 4, 8, 12]
    """
    counts: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high or high > 2**20:
            raise SettingError(
                f"{text!r} is no range of devices", fix="--devices 1..64 or 1,2,6"
            )
        while low <= high:
            counts.add(low)
            low *= 2
        counts.add(high)
    return sorted(counts)


def cluster_lines(
    planned: Cluster, fleet: Fleet, measurements: Measurements
) -> list[str]:
    """The table and its sentences, in 80 columns."""
    critical, network = fleet.noise.critical_batch, planned.network
    name, processor = measurements.job.name, measurements.machine.processor
    lines = [
        f" {name} on devices like this one: {processor}"[:80],
        f" B_crit {critical}, up to {fleet.most:,} examples at once timed"[:80],
        f" gradients {show_bytes(fleet.gradient_bytes)}, network "
        f"{8 * network.bandwidth / 1e9:.3g} Gb/s, "
        f"{show_seconds(network.latency_s)} ({network.source})"[:80],
        "",
        *_table(planned),
        "",
        *_paragraph(_where_it_stops(planned)),
    ]
    for text in _remarks(planned, fleet, measurements):
        lines += _paragraph(text)
    return lines


def _remarks(planned: Cluster, fleet: Fleet, measurements: Measurements) -> list[str]:
    """What the table stands on, and where it does not."""
    texts, coupled = [], measurements.job.coupled_batch
    for finding in measurements.findings:
        if finding.code == BATCH_NORM and coupled is None:
            what = f"{finding.code}: {finding.what}"
            texts.append(f"{what}; every split is another function.")
    if coupled is not None:
        texts.append(
            f"Examples touch each other here ({measurements.job.coupled}): every "
            f"device keeps {coupled:,} at once, as today."
        )
    if fleet.noise.published:
        method = fleet.noise.critical_batch.method
        texts.append(f"The critical batch is not measured here but {method}.")
    if any(row.beyond for row in planned.rows):
        texts.append(
            f"?: no run that B_crit is from had a batch above "
            f"{fleet.largest_trained:,}; steps there are by the law alone."
        )
    if not fleet.time.overhead_told:
        fixed = fleet.time.overhead
        texts.append(
            "The fixed part of a step is not told by the times: "
            f"{show_seconds(fixed.low)} to {show_seconds(fixed.high)} of "
            f"{show_seconds(fleet.time.seconds(fleet.time.smallest))} at "
            f"{fleet.time.smallest:,} examples."
        )
    if planned.seconds and fleet.evaluation_s:
        first, last = planned.rows[0], planned.rows[-1]
        text = (
            f"Evaluations, which one device makes, take {first.evaluation:.0%} of the "
            f"time on {first.devices:,}, {last.evaluation:.0%} on {last.devices:,}"
        )
        if fleet.evaluation_share * last.time.value < fleet.evaluation_s:
            text += f", put off beyond {fleet.evaluation_share:.0%} of the training"
        texts.append(f"{text} (--evaluations).")
    if planned.seconds:
        best = planned.best
        texts.append(
            f"On {best.devices:,} devices {show_seconds(best.time.value)}, 95 % "
            f"{show_seconds(best.time.low)} to {show_seconds(best.time.high)}."
        )
    texts.append(
        "Data parallel only: every device holds the whole model, and "
        f"{fleet.micro_batches[0]:,} examples of a step or more. split: examples of a "
        "device at once x accumulated. lost to: B_crit, a batch that adds little new; "
        "small b, a step that is mostly its fixed cost; network, the exchange of "
        "gradients; evaluation; data, no larger batch in it. A doubling pays if it is "
        "1.2 x as fast."
    )
    if not planned.seconds:
        texts[-1] += (
            " Time is over that on the fewest devices: no run has reached the target; "
            "--steps says how many steps today's batch takes (energy, price and "
            "evaluations need it too)."
        )
    return texts


def _table(planned: Cluster) -> list[str]:
    first = planned.rows[0]
    head = f"{'devices':>8} {'batch':>9}  {'split':>8} "
    head += f"{'time' if planned.seconds else 'time x':>8} {'speedup':>7} {'effic.':>6}"
    head += f" {'kWh':>8}" if first.joules is not None else ""
    head += f" {'price':>8}" if first.money is not None else ""
    lines = [f"{head}  lost to"]
    for row in planned.rows:
        time = f"{row.time.value:.3g}"
        if planned.seconds:
            time = show_seconds(row.time.value)
        split = f"{row.micro_batch} x {row.accumulation}"
        mark = ">" if row.devices == planned.pays_up_to else " "
        beyond = "?" if row.beyond else " "
        line = f"{mark}{row.devices:>7,} {row.batch_size:>9,}{beyond} {split:>8} "
        line += f"{time:>8} {row.speedup:>6.3g}x {row.efficiency:>6.0%}"
        if row.joules is not None:
            line += f" {show_number(row.joules / 3.6e6):>8}"
        if row.money is not None:
            line += f" {show_number(row.money):>8}"
        lines.append(f"{line}  {row.lost_to}"[:80])
    return lines


def _where_it_stops(planned: Cluster) -> str:
    best, (low, high) = planned.best, planned.pays_range
    text = f"Up to {best.devices:,}: {planned.reason}."
    if best.devices < planned.rows[-1].devices:
        text = f"More than {best.devices:,} do not pay: {planned.reason}."
    if low != high:
        text += f" By what is not known of it: {low:,} to {high:,} (95 %)."
    return text


def _elastic(batch: int, sizes: list[int]) -> str:
    shown = ", ".join(map(str, sizes[:40])) + (", …" if len(sizes) > 40 else "")
    return (
        f"Devices that come and go: B = {batch:,} is about as good and can be cut "
        f"evenly on {len(sizes)} numbers of devices: {shown}."
    )


def _paragraph(text: str) -> list[str]:
    return [f" {line}" for line in textwrap.wrap(text, 78)]


def _network(bandwidth: float | None, latency: float | None, measure: bool) -> Network:
    from rightbatch.cluster.network import (
        ASSUMED,
        Network,
        fit_network,
        measure_network,
    )

    if measure and (bandwidth is not None or latency is not None):
        raise SettingError(
            "the network is either measured or given",
            seen="--measure with --bandwidth or --latency",
            fix="one of the two",
        )
    if measure:
        from rightbatch.training.ranks import join

        join()  # where there is nothing to join, measuring says so
        return fit_network(measure_network())
    if bandwidth is None and latency is None:
        return ASSUMED
    partly = bandwidth is None or latency is None
    return Network(
        bandwidth=bandwidth or ASSUMED.bandwidth,
        latency_s=latency or ASSUMED.latency_s,
        source="partly assumed" if partly else "as given",
    )
