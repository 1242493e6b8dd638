"""The command ``cluster``: one job on one device, planned for many."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch.cli.console import DECIDED, make_console, print_document
from rightbatch.core.errors import RunFolderError, SettingError
from rightbatch.core.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from rightbatch.cluster.devices import Cluster, Fleet
    from rightbatch.cluster.network import Network
    from rightbatch.cluster.published import Published
    from rightbatch.measure.record import Measurements

BATCH_NORM = "RB109"  # the finding that splitting changes the model
GRADIENT_BYTES = 4  # of a parameter, where gradients are exchanged in float32


def cluster_command(
    measured: Path,
    devices: str,
    *,
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
    """Plan for every number of devices and print the table; returns the status."""
    counts = parse_devices(devices)
    if gradient_bytes is not None and not 0 < gradient_bytes < float("inf"):
        raise SettingError(
            "gradient-bytes must be positive", seen=f"{gradient_bytes:g}", fix="400MB"
        )
    if measure and (bandwidth is not None or latency is not None):
        raise SettingError(
            "the network is either measured or given",
            seen="--measure with --bandwidth or --latency",
        )
    from rightbatch.measure.record import Measurements
    from rightbatch.training.run_folder import MEASUREMENTS, MEMORY

    if measured.name == "plan.json":  # the plan's own evidence lies beside it
        measured = measured.parent
    path = measured / MEASUREMENTS if measured.is_dir() else measured
    if not path.exists() and (path.parent / MEMORY).exists():
        raise RunFolderError(
            f"only memory was measured in {path.parent}",
            why="a cluster needs step times and gradient noise",
            fix="rightbatch measure JOB, or tune JOB",
        )
    found = Measurements.load(path)
    network = _network(bandwidth, latency, measure)
    first = not int(os.environ.get("RANK", "0")) or not measure
    from rightbatch.cluster.devices import elastic_batch, plan_cluster
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.terminal import print_plain
    from rightbatch.training.ranks import leave

    fleet = fleet_of(
        found,
        network,
        memory=memory,
        steps=steps,
        watts=watts,
        per_hour=price,
        gradient_bytes=GRADIENT_BYTES * found.job.parameters
        if gradient_bytes is None
        else gradient_bytes,
        prior=None if prior is None else prior_named(prior),
    )
    planned = plan_cluster(fleet, counts)
    batch, sizes = elastic_batch(fleet, planned.best, max(counts))
    if not first:  # the first rank speaks
        pass
    elif as_json:
        menu = {"batch_size": batch, "devices": sizes}
        print_document({"cluster": to_plain(planned), "elastic": menu})
    else:
        lines = cluster_lines(planned, fleet, found)
        lines += ["", *_elastic(batch, sizes)]
        print_plain(make_console(as_json), "\n".join(lines))
    if measure:
        leave(DECIDED)
    return DECIDED


def fleet_of(
    found: Measurements,
    network: Network,
    *,
    memory: float | None,
    steps: int | None,
    watts: float | None,
    per_hour: float | None,
    gradient_bytes: float,
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
    from rightbatch.memory.envelope import check_room, fit_points
    from rightbatch.plan.choice import laws_of, limit_bytes
    from rightbatch.plan.evidence import steps_to_target

    for name, value in (("steps", steps), ("watts", watts), ("price", per_hour)):
        if value is not None and not 0 < value < float("inf"):
            raise SettingError(f"{name} must be positive", seen=f"{name}={value}")
    limit = limit_bytes(found, memory)
    time = fit_time(found.times, found.contention)
    most = time.largest
    if len(found.memory) >= 2:
        law = fit_points(found.memory)
        check_room(law, limit)
        most = min(most, law.largest(limit))
    return Fleet(
        time=time,
        noise=laws_of(found).noise if prior is None else noise_of(prior),
        most=most,
        examples=found.job.examples,
        gradient_bytes=gradient_bytes,
        network=network,
        reference=found.job.batch_size,
        steps=steps if steps is not None else steps_to_target(found),
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
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high or high > 2**20:
            raise SettingError(
                f"{text!r} is no range of devices", fix="--devices 1..64 or 1,2,6"
            )
        while low <= high:
            found.add(low)
            low *= 2
        found.add(high)
    return sorted(found)


def cluster_lines(planned: Cluster, fleet: Fleet, found: Measurements) -> list[str]:
    """The table and its sentence, in 80 columns."""
    seconds = planned.seconds
    more = [
        ("energy", [r.joules for r in planned.rows], _joules),
        ("price", [r.money for r in planned.rows], _amount),
    ]
    shown = [(name, v, f) for name, v, f in more if v[0] is not None]
    critical = fleet.noise.critical_batch
    network = planned.network
    lines = [
        f" {found.job.name} on devices like this one: {found.machine.processor}"[:80],
        f" B_crit {show_number(critical.value)} ({show_number(critical.low)} to "
        f"{show_number(critical.high)}), up to {fleet.most:,} at once timed, "
        f"gradients {show_bytes(fleet.gradient_bytes)}"[:80],
        f" network {8 * network.bandwidth / 1e9:.3g} Gb/s, "
        f"{show_seconds(network.latency_s)} ({network.source})"[:80],
        "",
        f"{'devices':>8} {'batch':>9} {'split':>8} "
        f"{'time' if seconds else 'time x':>8} {'speedup':>7} {'effic.':>6}"
        + "".join(f" {name:>8}" for name, *_ in shown)
        + "  lost to",
    ]
    for i, row in enumerate(planned.rows):
        time = show_seconds(row.time.value) if seconds else f"{row.time.value:.3g}"
        split = f"{row.micro_batch} x {row.accumulation}"
        mark = ">" if row.devices == planned.pays_up_to else " "
        cells = "".join(f" {f(v[i]):>8}" for _, v, f in shown)
        lines.append(
            f"{mark}{row.devices:>7,} {row.batch_size:>9,} {split:>8} {time:>8} "
            f"{row.speedup:>6.3g}x {row.efficiency:>6.0%}{cells}  {row.lost_to}"[:80]
        )
    best = planned.best
    text = (
        f"More than {best.devices:,} do not pay: {planned.reason}."
        if best.devices < planned.rows[-1].devices
        else f"Up to {best.devices}: {planned.reason}."
    )
    low, high = planned.pays_range
    if low != high:
        text += f" Over the interval of B_crit: {low:,} to {high:,} devices."
    lines += ["", *(f" {line}" for line in textwrap.wrap(text, 78))]
    for finding in found.findings:
        if finding.code == BATCH_NORM:
            said = f"{finding.code}: {finding.what}; every split is another function."
            lines += [f" {line}" for line in textwrap.wrap(said, 78)]
    if fleet.noise.metric == "published":
        text = f"The critical batch is not measured here but {critical.method}."
        lines += [f" {line}" for line in textwrap.wrap(text, 78)]
    notes = [
        "split: examples of a device at once x accumulated. lost to: B_crit, a batch "
        "that adds little new; small b, a step that is mostly its fixed cost; "
        "network, the exchange of gradients. A doubling pays if it is 1.2 x as fast."
    ]
    if not seconds:
        notes.append(
            "Time is over that on the fewest devices: no run has reached the target; "
            "--steps says how many steps today's batch takes (energy and price need "
            "it too)."
        )
    lines += [f" {line}" for line in textwrap.wrap(" ".join(notes), 78)]
    return lines


def _elastic(batch: int, sizes: list[int]) -> list[str]:
    shown = ", ".join(map(str, sizes[:40])) + (", …" if len(sizes) > 40 else "")
    text = (
        f"Devices that come and go: B = {batch:,} is about as good and can be cut "
        f"evenly on {len(sizes)} numbers of devices: {shown}."
    )
    return [f" {line}" for line in textwrap.wrap(text, 78)]


def _amount(value: Any) -> str:
    return show_number(value)


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
