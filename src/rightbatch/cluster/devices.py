"""The best batch for every number of devices, and where more of them stop paying."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.cluster.network import Network
from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.fit.critical_batch import NoiseLaw
from rightbatch.fit.step_time import TimeLaw

# Of the work on the last micro-batch, the share during which gradients are already on
# their way: the backward pass, two of three parts [derived], less its first layers.
OVERLAP = 0.6  # [assumed]
PAYS = 1.2  # a doubling of devices must make it so much sooner to be worth it [assumed]
MOST_ACCUMULATION = 64
LITTLE = 0.95  # efficiency above which nothing is called lost [assumed]
FLAT = 1.1  # batches within this factor of the best are about as good [derived]


@dataclass(frozen=True, slots=True)
class Split:
    """A batch over so many devices, in micro-batches accumulated on each of them."""

    devices: int
    micro_batch: int
    accumulation: int

    @property
    def batch_size(self) -> int:
        """Examples of one step on all devices."""
        return self.devices * self.micro_batch * self.accumulation


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A job and the devices it could run on.

    Attributes:
        time: Step time of one device against its micro-batch.
        noise: The critical batch, with draws.
        most: Largest micro-batch that fits and was timed.
        examples: Length of the data set: no batch is larger.
        gradient_bytes: What is exchanged in every step.
        network: Between the devices.
        reference: The batch at which ``steps`` were counted.
        steps: Steps to the target at that batch, if known.
        watts: Power of one device, if known.
        per_hour: Price of one device for an hour, if known.
    """

    time: TimeLaw
    noise: NoiseLaw
    most: int
    examples: int
    gradient_bytes: float
    network: Network
    reference: int
    steps: float | None = None
    watts: float | None = None
    per_hour: float | None = None

    def exposed_s(self, split: Split, draw: int | None = None) -> float:
        """The part of the exchange of gradients that no computing covers."""
        exchange = self.network.all_reduce_s(self.gradient_bytes, split.devices)
        computing = self.time.seconds(split.micro_batch, draw) - self.time.update_s
        return max(exchange - OVERLAP * max(computing, 0.0), 0.0)

    def step_s(self, split: Split, draw: int | None = None) -> float:
        """Seconds of one step."""
        alone = self.time.step_seconds(split.micro_batch, split.accumulation, draw)
        return alone + self.exposed_s(split, draw)

    def steps_at(self, batch: int, draw: int | None = None) -> float:
        """Steps to the same result; 1 at the reference where they are not known.

        Args:
            batch: Examples of a step.
            draw: Number of a draw of the critical batch; None: the fit itself.
        """
        ratio = self.noise.relative_steps(batch, self.reference, draw)
        return (self.steps or 1.0) * ratio

    def total_s(self, split: Split, draw: int | None = None) -> float:
        """Seconds to the result; where steps are not known, in a unit of its own."""
        return self.steps_at(split.batch_size, draw) * self.step_s(split, draw)

    def best_split(self, devices: int) -> Split | None:
        """The split of least time to the result; None: too few examples for any."""
        micro_batches = {2**i for i in range(self.most.bit_length())} | {self.most}
        splits = [
            Split(devices, micro_batch, 2**i)
            for micro_batch in micro_batches
            for i in range(MOST_ACCUMULATION.bit_length())
            if devices * micro_batch * 2**i <= self.examples
        ]
        return min(splits, key=self.total_s, default=None)

    def with_critical_batch(self, critical: float) -> Fleet:
        """The same, were the critical batch exactly this one."""
        value = Estimate.exact(max(critical, 1.0), "examples")
        noise = NoiseLaw(value, np.array([value.value]), self.noise.published)
        return dataclasses.replace(self, noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The best way to train on so many devices.

    Attributes:
        devices: n.
        batch_size: B = devices * micro_batch * accumulation.
        micro_batch: b, of one device.
        accumulation: k.
        step_time_s: Of one step, with what of the exchange is not covered.
        time: Seconds to the target, or over the time on the fewest devices.
        speedup: Against the fewest devices.
        efficiency: Speedup over devices, relative to the fewest.
        exposed: Share of a step in which devices only exchange.
        joules: Energy to the target, where watts and steps are known.
        money: Price to the target, where known.
        lost_to: What most of the efficiency is lost to.
    """

    devices: int
    batch_size: int
    micro_batch: int
    accumulation: int
    step_time_s: float
    time: Estimate
    speedup: float
    efficiency: float
    exposed: float
    joules: float | None
    money: float | None
    lost_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The rows, and where to stop.

    Attributes:
        rows: In order of devices.
        pays_up_to: The most devices of which the last doubling was worth it.
        reason: Why not more.
        pays_range: The same at both ends of the critical batch's interval.
        network: What was assumed between the devices.
        seconds: Whether ``time`` is in seconds; else it is a ratio.
    """

    rows: tuple[Row, ...]
    pays_up_to: int
    reason: str
    pays_range: tuple[int, int]
    network: Network
    seconds: bool

    @property
    def best(self) -> Row:
        """The row that is still worth its devices."""
        return next(r for r in self.rows if r.devices == self.pays_up_to)


def plan_cluster(fleet: Fleet, devices: Sequence[int]) -> Cluster:
    """Choose batch and split for every number of devices.

    Args:
        fleet: The job on one device, and the network.
        devices: Numbers of devices, in any order.

    Raises:
        SettingError: None is given, one is below 1, or the data set is too small for
            the fewest.
    """
    wanted = sorted(set(devices))
    if not wanted or wanted[0] < 1:
        raise SettingError(
            "devices are counted from 1", seen=f"{list(devices)}", fix="--devices 1..64"
        )
    splits = _best_splits(fleet, wanted)
    if not splits:
        raise SettingError(
            f"{wanted[0]} devices are more than there are examples in the data set",
            seen=f"{fleet.examples:,} examples",
            why="every device needs one at least",
        )
    rows = tuple(_row(fleet, split, splits[0]) for split in splits)
    critical = fleet.noise.critical_batch
    low, high = (
        _pays_up_to({s.devices: other.total_s(s) for s in _best_splits(other, wanted)})
        for other in map(fleet.with_critical_batch, (critical.low, critical.high))
    )
    pays_up_to = _pays_up_to({row.devices: row.time.value for row in rows})
    return Cluster(
        rows=rows,
        pays_up_to=pays_up_to,
        reason=_reason(fleet, rows, pays_up_to, wanted[-1]),
        pays_range=(low, high),
        network=fleet.network,
        seconds=fleet.steps is not None,
    )


def world_sizes(batch: int, devices: int) -> list[int]:
    """Numbers of devices, up to so many, on which this batch can be cut evenly."""
    return [n for n in range(1, min(devices, batch) + 1) if batch % n == 0]


def elastic_batch(fleet: Fleet, row: Row, devices: int) -> tuple[int, list[int]]:
    """A batch about as good as the row's that runs on the most numbers of devices.

    As DeepSpeed's elastic training has it: a job whose machines come and go keeps one
    global batch, so it should have many divisors. Batches within 10 % of the row's
    examples are considered; all are about as good, since the optimum is flat.
    """
    low, high = math.ceil(row.batch_size / FLAT), int(row.batch_size * FLAT)
    high = max(min(high, fleet.examples), row.batch_size)

    def worth(batch: int) -> tuple[int, int]:
        return len(world_sizes(batch, devices)), -abs(batch - row.batch_size)

    # Numbers with many divisors are multiples of these, which spares trying all.
    step = next((s for s in (2520, 60) if high - low > 500 * s), 1)
    tried = {row.batch_size, *range(-(-low // step) * step, high + 1, step)}
    best = max(tried, key=worth)
    return best, world_sizes(best, devices)


def _best_splits(fleet: Fleet, devices: Sequence[int]) -> list[Split]:
    """Of every number of devices for which there are examples enough."""
    splits = [fleet.best_split(n) for n in devices]
    return [split for split in splits if split is not None]


def _row(fleet: Fleet, split: Split, fewest: Split) -> Row:
    speedup = fleet.total_s(fewest) / fleet.total_s(split)
    efficiency = speedup * fewest.devices / split.devices
    known = fleet.steps is not None

    def shown(draw: int | None) -> float:
        total = fleet.total_s(split, draw)
        return total if known else total / fleet.total_s(fewest, draw)

    device_s = split.devices * shown(None)
    return Row(
        devices=split.devices,
        batch_size=split.batch_size,
        micro_batch=split.micro_batch,
        accumulation=split.accumulation,
        step_time_s=fleet.step_s(split),
        time=Estimate.from_draws(
            shown(None),
            [shown(draw) for draw in range(len(fleet.noise.draws))],
            unit="s" if known else "",
            n=fleet.noise.critical_batch.n,
            method="laws of time, noise and network",
        ),
        speedup=speedup,
        efficiency=efficiency,
        exposed=fleet.exposed_s(split) / fleet.step_s(split),
        joules=device_s * fleet.watts if known and fleet.watts else None,
        money=device_s * fleet.per_hour / 3600 if known and fleet.per_hour else None,
        lost_to="" if efficiency > LITTLE else _lost_to(fleet, split.devices),
    )


def _lost_to(fleet: Fleet, devices: int) -> str:
    """What most of the efficiency is lost to: the want whose absence would help most.

    Each is taken away in turn (an endless critical batch, a network that costs nothing,
    steps without a fixed part) and the best split is looked for anew.
    """
    free = Network(bandwidth=1e30, latency_s=0.0)
    parameters = fleet.time.parameters.copy()
    parameters[0] *= 1e-6
    light = dataclasses.replace(fleet.time, parameters=parameters, update_s=0.0)
    without = {
        "B_crit": fleet.with_critical_batch(1e18),
        "network": dataclasses.replace(fleet, network=free),
        "small b": dataclasses.replace(fleet, time=light),
    }
    return min(without, key=lambda name: _relative_time(without[name], devices))


def _relative_time(fleet: Fleet, devices: int) -> float:
    """The least time on so many devices over that on one.

    An endless critical batch must not shorten the run on one device too: progress is
    what one device makes.
    """
    split, alone = fleet.best_split(devices), fleet.best_split(1)
    assert split is not None
    assert alone is not None
    return fleet.total_s(split) / fleet.total_s(alone)


def _pays_up_to(times: Mapping[int, float]) -> int:
    """The most devices of which the last doubling was worth its price.

    Steps back in between do not end it: a larger step up may pay again.

    Args:
        times: To the result, by number of devices, in order.
    """
    last = min(times)
    while True:
        worth = [
            n
            for n in times
            if n > last and times[last] / times[n] >= PAYS ** math.log2(n / last)
        ]
        if not worth:
            return last
        last = worth[0]


def _reason(fleet: Fleet, rows: Sequence[Row], pays_up_to: int, wanted: int) -> str:
    """Why not more devices than pay."""
    last = next(row for row in rows if row.devices == pays_up_to)
    following = next((row for row in rows if row.devices > pays_up_to), None)
    if following is None:
        if rows[-1].devices < wanted:
            return f"the data set has {fleet.examples:,} examples only"
        return f"each step up makes it {PAYS} x as fast or more a doubling"
    critical = show_number(fleet.noise.critical_batch.value)
    cause = {
        "B_crit": f"the critical batch ({critical} examples): beyond it a larger batch "
        "adds little that is new",
        "small b": "the fixed cost of a step, as a device's micro-batches become small",
        "network": "the exchange of gradients, which computing no longer covers",
    }[_lost_to(fleet, following.devices)]
    gain = last.time.value / following.time.value
    return (
        f"{following.devices:,} devices would be {gain:.2f} x as fast as "
        f"{pays_up_to:,}: lost to {cause}"
    )
