"""The command ``cluster``: one job on one device, planned for many."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rightbatch.cli.console import DECIDED, make_console, print_document
from rightbatch.cli.options import BANDWIDTH, JSON, LATENCY, MEMORY, PATH
from rightbatch.cli.ranks import end_together
from rightbatch.core.errors import RunFolderError, SettingError
from rightbatch.core.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from rightbatch.cluster.devices import Cluster, Fleet
    from rightbatch.cluster.network import Network
    from rightbatch.cluster.published import Published
    from rightbatch.measure.record import Measurements

BATCH_NORM = "RB109"  # the finding that splitting changes the model
GRADIENT_BYTES = 4  # of a parameter, where gradients are exchanged in float32


@click.command()
@click.argument("measured", metavar="PLAN", type=PATH)
@click.option("--devices", default="1..64", show_default=True, help="1..64 or 1,2,6.")
@click.option("--bandwidth", type=BANDWIDTH, help="Of a node: 400Gb/s, 50GB/s.")
@click.option("--latency", type=LATENCY, help="Of a message: 20us.")
@click.option("--memory", type=MEMORY, help="Most memory a step may take.")
@click.option("--steps", type=int, help="Steps to the target at today's batch.")
@click.option("--watts", type=float, help="Power of one device.")
@click.option("--price", type=float, help="Price of one device for an hour.")
@click.option("--gradient-bytes", type=MEMORY, help="Exchanged in a step: 400MB.")
@click.option("--prior", help="A published B_crit: resnet, lm:300M, ….")
@click.option("--measure", is_flag=True, help="Measure the network, under torchrun.")
@JSON
def cluster(
    measured: Path,
    devices: str,
    bandwidth: float | None,
    latency: float | None,
    memory: float | None,
    steps: int | None,
    watts: float | None,
    price: float | None,
    gradient_bytes: float | None,
    prior: str | None,
    measure: bool,
    as_json: bool,
) -> int:
    """Plan for many devices from the measurements of one.

    PLAN is a run folder. Says the best batch and its split for every number of
    devices, the time, energy and price, where more devices stop paying, and why.
    """
    counts = parse_devices(devices)
    if measure and (bandwidth is not None or latency is not None):
        raise SettingError(
            "the network is either measured or given",
            seen="--measure with --bandwidth or --latency",
            fix="one of the two",
        )
    measurements = _load(measured)
    network = _network(bandwidth, latency, measure)
    from rightbatch.cluster.devices import elastic_batch, plan_cluster
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.terminal import print_plain

    fleet = fleet_of(
        measurements,
        network,
        memory=memory,
        steps=steps,
        watts=watts,
        per_hour=price,
        gradient_bytes=gradient_bytes,
        prior=None if prior is None else prior_named(prior),
    )
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
    from rightbatch.measure.record import Measurements
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN
    from rightbatch.training.run_folder import MEMORY as MEMORY_LAW

    if measured.name == PLAN:  # what it was decided from lies beside it
        measured = measured.parent
    path = measured / MEASUREMENTS if measured.is_dir() else measured
    if not path.exists() and (path.parent / MEMORY_LAW).exists():
        raise RunFolderError(
            f"only memory was measured in {path.parent}",
            why="a cluster needs step times and gradient noise",
            fix="rightbatch measure JOB, or tune JOB",
        )
    return Measurements.load(path)


def fleet_of(
    measurements: Measurements,
    network: Network,
    *,
    memory: float | None,
    steps: int | None,
    watts: float | None,
    per_hour: float | None,
    gradient_bytes: float | None,
    prior: Published | None = None,
) -> Fleet:
    """The job of these measurements, on devices like the one they were made on.

    Raises:
        SettingError: A value is not positive.
        UnidentifiedError: Times or noise were not measured.
    """
    from rightbatch.cluster.devices import Fleet
    from rightbatch.cluster.published import noise_of
    from rightbatch.fit.step_time import fit_time
    from rightbatch.measure.run_progress import steps_to_target
    from rightbatch.memory.envelope import check_room, fit_points
    from rightbatch.plan.constraints import memory_limit
    from rightbatch.plan.laws import laws_of

    given = {
        "steps": steps,
        "watts": watts,
        "price": per_hour,
        "gradient-bytes": gradient_bytes,
    }
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise SettingError(f"{name} must be positive", seen=f"--{name} {value:g}")
    job, limit = measurements.job, memory_limit(measurements, memory)
    time = fit_time(measurements.times, measurements.contention)
    most = time.largest
    if len(measurements.memory) >= 2:
        law = fit_points(measurements.memory)
        check_room(law, limit)
        most = min(most, law.largest(limit))
    return Fleet(
        time=time,
        noise=laws_of(measurements).noise if prior is None else noise_of(prior),
        most=most,
        examples=job.examples,
        gradient_bytes=gradient_bytes or GRADIENT_BYTES * job.parameters,
        network=network,
        reference=job.batch_size,
        steps=steps if steps is not None else steps_to_target(measurements),
        watts=watts,
        per_hour=per_hour,
    )


def prior_named(name: str) -> Published:
    """A published law by its name; ``lm:300M`` is a language model of that size.

    Raises:
        SettingError: There is none of that name.
    """
    from rightbatch.cluster.published import language_model, published

    match = re.fullmatch(r"lm:([0-9.]+)([MB])", name)
    if match is None:
        return published(name)
    return language_model(float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]])


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
        f" B_crit {show_number(critical.value)} ({show_number(critical.low)} to "
        f"{show_number(critical.high)}), up to {fleet.most:,} at once timed, "
        f"gradients {show_bytes(fleet.gradient_bytes)}"[:80],
        f" network {8 * network.bandwidth / 1e9:.3g} Gb/s, "
        f"{show_seconds(network.latency_s)} ({network.source})"[:80],
        "",
        *_table(planned),
        "",
        *_paragraph(_where_it_stops(planned)),
    ]
    for finding in measurements.findings:
        if finding.code == BATCH_NORM:
            text = f"{finding.code}: {finding.what}; every split is another function."
            lines += _paragraph(text)
    if fleet.noise.metric == "published":
        text = f"The critical batch is not measured here but {critical.method}."
        lines += _paragraph(text)
    notes = (
        "split: examples of a device at once x accumulated. lost to: B_crit, a batch "
        "that adds little new; small b, a step that is mostly its fixed cost; "
        "network, the exchange of gradients. A doubling pays if it is 1.2 x as fast."
    )
    if not planned.seconds:
        notes += (
            " Time is over that on the fewest devices: no run has reached the target; "
            "--steps says how many steps today's batch takes (energy and price need "
            "it too)."
        )
    return [*lines, *_paragraph(notes)]


def _table(planned: Cluster) -> list[str]:
    amounts: list[tuple[str, list[Any], Callable[[Any], str]]] = [
        ("energy", [r.joules for r in planned.rows], _joules),
        ("price", [r.money for r in planned.rows], show_number),
    ]
    known = [amount for amount in amounts if amount[1][0] is not None]
    lines = [
        f"{'devices':>8} {'batch':>9} {'split':>8} "
        f"{'time' if planned.seconds else 'time x':>8} {'speedup':>7} {'effic.':>6}"
        + "".join(f" {name:>8}" for name, *_ in known)
        + "  lost to"
    ]
    for i, row in enumerate(planned.rows):
        time = f"{row.time.value:.3g}"
        if planned.seconds:
            time = show_seconds(row.time.value)
        split = f"{row.micro_batch} x {row.accumulation}"
        mark = ">" if row.devices == planned.pays_up_to else " "
        cells = "".join(f" {show(values[i]):>8}" for _, values, show in known)
        lines.append(
            f"{mark}{row.devices:>7,} {row.batch_size:>9,} {split:>8} {time:>8} "
            f"{row.speedup:>6.3g}x {row.efficiency:>6.0%}{cells}  {row.lost_to}"[:80]
        )
    return lines


def _where_it_stops(planned: Cluster) -> str:
    best, (low, high) = planned.best, planned.pays_range
    text = f"Up to {best.devices:,}: {planned.reason}."
    if best.devices < planned.rows[-1].devices:
        text = f"More than {best.devices:,} do not pay: {planned.reason}."
    if low != high:
        text += f" Over the interval of B_crit: {low:,} to {high:,} devices."
    return text


def _elastic(batch: int, sizes: list[int]) -> str:
    shown = ", ".join(map(str, sizes[:40])) + (", …" if len(sizes) > 40 else "")
    return (
        f"Devices that come and go: B = {batch:,} is about as good and can be cut "
        f"evenly on {len(sizes)} numbers of devices: {shown}."
    )


def _paragraph(text: str) -> list[str]:
    return [f" {line}" for line in textwrap.wrap(text, 78)]


def _joules(value: Any) -> str:
    for unit, size in (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} J"


def _network(bandwidth: float | None, latency: float | None, measure: bool) -> Any:
    from rightbatch.cluster.network import ASSUMED, Network, fit_network

    if measure:
        from rightbatch.cluster.network_time import measure_network
        from rightbatch.training.ranks import join

        if not join():
            raise SettingError(
                "there are no processes whose network could be measured",
                fix="torchrun --nproc-per-node N -m rightbatch cluster PLAN --measure",
            )
        return fit_network(measure_network())
    if bandwidth is None and latency is None:
        return ASSUMED
    source = "as given"
    if bandwidth is None or latency is None:
        source = "latency assumed" if latency is None else "bandwidth assumed"
    return Network(
        bandwidth=ASSUMED.bandwidth if bandwidth is None else bandwidth,
        latency_s=ASSUMED.latency_s if latency is None else latency,
        source=source,
    )
