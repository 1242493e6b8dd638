"""The best batch for every number of devices, and where more of them stop paying."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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
MOST_PIECES = 64
LITTLE = 0.95  # efficiency above which nothing is called lost [assumed]
FLAT = 1.1


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

    def exposed_s(self, devices: int, micro: int, draw: int | None = None) -> float:
        """The part of the exchange of gradients that no computing covers."""
        exchange = self.network.all_reduce_s(self.gradient_bytes, devices)
        cover = max(self.time.seconds(micro, draw) - self.time.update_s, 0.0)
        return max(exchange - OVERLAP * cover, 0.0)

    def step_s(
        self, devices: int, micro: int, pieces: int, draw: int | None = None
    ) -> float:
        """Seconds of one step of ``devices * micro * pieces`` examples."""
        alone = self.time.step_seconds(micro, pieces, draw)
        return alone + self.exposed_s(devices, micro, draw)

    def steps_at(self, batch: int, draw: int | None = None) -> float:
        """Steps to the same result; 1 at the reference where they are not known."""
        critical = self.critical(draw)
        if math.isinf(critical):
            ratio = self.reference / batch
        else:
            ratio = (1 + critical / batch) / (1 + critical / self.reference)
        return (self.steps or 1.0) * ratio

    def critical(self, draw: int | None) -> float:
        """The critical batch, by the fit or by one of its draws."""
        if draw is None:
            return self.noise.critical_batch.value
        return float(self.noise.draws[draw])


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
    splits = [(n, _best_split(fleet, n)) for n in wanted]
    kept = [(n, split) for n, split in splits if split is not None]
    if not kept:
        raise SettingError(
            f"{wanted[0]} devices are more than there are examples in the data set",
            seen=f"{fleet.examples:,} examples",
            why="every device needs one at least",
        )
    rows = [_row(fleet, n, split, kept[0]) for n, split in kept]
    up_to, reason = _pays(rows, dropped=len(splits) - len(kept), fleet=fleet)
    return Cluster(
        rows=tuple(rows),
        pays_up_to=up_to,
        reason=reason,
        pays_range=(
            _pays_at(fleet, wanted, fleet.noise.critical_batch.low),
            _pays_at(fleet, wanted, fleet.noise.critical_batch.high),
        ),
        network=fleet.network,
        seconds=fleet.steps is not None,
    )


def _pays_at(fleet: Fleet, devices: Sequence[int], critical: float) -> int:
    """Up to how many devices pay, were the critical batch this one."""
    value = Estimate.exact(max(critical, 1.0), "examples")
    noise = NoiseLaw(value, np.array([value.value]), fleet.noise.metric)
    other = dataclasses.replace(fleet, noise=noise)
    splits = [(n, _best_split(other, n)) for n in devices]
    kept = [(n, split) for n, split in splits if split is not None]
    rows = [_row(other, n, split, kept[0], blame=False) for n, split in kept]
    return _last_that_pays(rows).devices


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


Split = tuple[int, int]


def _best_split(fleet: Fleet, devices: int) -> Split | None:
    """The (micro-batch, pieces) of least time to the result on so many devices."""
    micros = [2**i for i in range(fleet.most.bit_length())]
    pieces = [2**i for i in range(MOST_PIECES.bit_length())]
    splits = [
        (b, k)
        for b in {*micros, fleet.most}
        for k in pieces
        if devices * b * k <= fleet.examples
    ]

    def seconds(split: Split) -> float:
        return fleet.steps_at(devices * split[0] * split[1]) * fleet.step_s(
            devices, *split
        )

    return min(splits, key=seconds, default=None)


def _row(
    fleet: Fleet,
    devices: int,
    split: Split,
    first: tuple[int, Split],
    *,
    blame: bool = True,
) -> Row:
    micro, pieces = split
    batch = devices * micro * pieces
    step = fleet.step_s(devices, micro, pieces)
    own, reference = _total(fleet, devices, split), _total(fleet, *first)
    speedup = reference(None) / own(None)
    seconds = own(None) if fleet.steps is not None else None

    def shown(draw: int | None) -> float:
        return own(draw) if fleet.steps is not None else own(draw) / reference(draw)

    draws = [shown(d) for d in range(len(fleet.noise.draws))]
    return Row(
        devices=devices,
        batch_size=batch,
        micro_batch=micro,
        accumulation=pieces,
        step_time_s=step,
        time=Estimate.from_draws(
            shown(None),
            draws,
            unit="" if seconds is None else "s",
            n=fleet.noise.critical_batch.n,
            method="laws of time, noise and network",
        ),
        speedup=speedup,
        efficiency=speedup * first[0] / devices,
        exposed=fleet.exposed_s(devices, micro) / step,
        joules=_product(seconds, fleet.watts, devices),
        money=_product(seconds, fleet.per_hour, devices / 3600),
        lost_to=_lost_to(fleet, devices, speedup * first[0] / devices) if blame else "",
    )


def _total(fleet: Fleet, devices: int, split: Split) -> Callable[[int | None], float]:
    batch = devices * split[0] * split[1]
    return lambda d: fleet.steps_at(batch, d) * fleet.step_s(devices, *split, d)


def _product(seconds: float | None, each: float | None, factor: float) -> float | None:
    return None if seconds is None or each is None else seconds * each * factor


def _lost_to(fleet: Fleet, devices: int, efficiency: float) -> str:
    """What most of the efficiency is lost to: the want whose absence would help most.

    Each is taken away in turn (an endless critical batch, a network that costs nothing,
    steps without a fixed part) and the best split is looked for anew.
    """
    if efficiency > LITTLE:
        return ""
    free = Network(bandwidth=1e30, latency_s=0.0)
    endless = Estimate.exact(1e18, "examples")
    noise = NoiseLaw(endless, np.array([1e18]), fleet.noise.metric)
    parameters = fleet.time.parameters.copy()
    parameters[0] *= 1e-6
    light = dataclasses.replace(fleet.time, parameters=parameters, update_s=0.0)
    without = {
        "B_crit": dataclasses.replace(fleet, noise=noise),
        "network": dataclasses.replace(fleet, network=free),
        "small b": dataclasses.replace(fleet, time=light),
    }
    gains = {
        name: _seconds_of_progress(fleet, fleet, devices)
        / _seconds_of_progress(other, fleet, devices)
        for name, other in without.items()
    }
    return max(gains, key=lambda name: gains[name])


def _seconds_of_progress(world: Fleet, real: Fleet, devices: int) -> float:
    """The least time on so many devices; steps counted as on one device of that world.

    An endless critical batch must not shorten the run on one device too: progress is
    what one device of each world makes at the reference.
    """
    split = _best_split(world, devices)
    alone = _best_split(world, 1)
    assert split is not None
    assert alone is not None
    return _total(world, devices, split)(None) / _total(world, 1, alone)(None)


def _pays(rows: Sequence[Row], dropped: int, fleet: Fleet) -> tuple[int, str]:
    """Up to where another doubling is worth its price, and what ends it."""
    last = _last_that_pays(rows)
    beyond = [row for row in rows if row.devices > last.devices]
    if beyond:
        row = beyond[0]
        cause = _lost_to(fleet, row.devices, 0.0)
        return last.devices, (
            f"{row.devices:,} devices would be {_gain(last, row):.2f} x as fast as "
            f"{last.devices:,}: lost to {_told(cause, fleet)}"
        )
    if dropped:
        return last.devices, f"the data set has {fleet.examples:,} examples only"
    return last.devices, f"each step up makes it {PAYS} x as fast or more a doubling"


def _last_that_pays(rows: Sequence[Row]) -> Row:
    """Steps back in between do not end it: a larger step up may pay again."""
    last = rows[0]
    while True:
        worth = [
            row
            for row in rows
            if row.devices > last.devices and _gain(last, row) >= _price(last, row)
        ]
        if not worth:
            return last
        last = worth[0]


def _gain(few: Row, many: Row) -> float:
    return few.time.value / many.time.value


def _price(few: Row, many: Row) -> float:
    return PAYS ** math.log2(many.devices / few.devices)


def _told(cause: str, fleet: Fleet) -> str:
    critical = show_number(fleet.noise.critical_batch.value)
    return {
        "B_crit": f"the critical batch ({critical} examples): beyond it a "
        "batch adds little that is new",
        "small b": "the fixed cost of a step, as a device's pieces become small",
        "network": "the exchange of gradients, which computing no longer covers",
    }.get(cause, cause)
