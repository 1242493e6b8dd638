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
HELPS = 1.02  # what is blamed would, if taken away, make it so much sooner [assumed]
# What these laws leave out, as standard deviations of logs: how far fleets of other
# machines, loaders and software lie from them, and runs that differ in their seed
# [measured on 154 published steps and 146 published sets of runs]; and how far a link
# is from what is assumed of it [assumed].
FLEET_SPREAD, RUN_SPREAD, NETWORK_SPREAD = 0.15, 0.04, 0.35
DRAWS = 400
_FLEET, _RUN, _NETWORK = np.random.default_rng(1).standard_normal((3, DRAWS))
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
        most: Largest micro-batch that fits and was timed. The smallest is that of
            ``time``: below it nothing is planned.
        examples: Length of the data set: no batch is larger.
        gradient_bytes: What is exchanged in every step.
        network: Between the devices.
        reference: The batch at which ``steps`` were counted.
        steps: Steps to the target at that batch, if known.
        evaluation_s: Of all evaluations of a run. One device makes them while the
            others wait, as in `rightbatch.train`: it takes as long on any number.
        evaluation_share: Most of the training time that they may take; then they are
            put off.
        allowed: Micro-batches that may be planned; None: powers of two from the
            smallest timed to ``most``.
        largest_trained: The largest batch of the runs that ``noise`` is from, if known.
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
    evaluation_s: float = 0.0
    evaluation_share: float = math.inf
    allowed: tuple[int, ...] | None = None
    largest_trained: int | None = None
    watts: float | None = None
    per_hour: float | None = None

    def exposed_s(self, split: Split, draw: int | None = None) -> float:
        """The part of the exchange of gradients that no computing covers."""
        exchange = self.network.all_reduce_s(self.gradient_bytes, split.devices)
        if draw is not None:
            exchange *= math.exp(NETWORK_SPREAD * _NETWORK[draw % DRAWS])
        computing = self.time.seconds(split.micro_batch, draw) - self.time.update_s
        return max(exchange - OVERLAP * max(computing, 0.0), 0.0)

    def step_s(self, split: Split, draw: int | None = None) -> float:
        """Seconds of one step."""
        alone = self.time.step_seconds(split.micro_batch, split.accumulation, draw)
        step_s = alone + self.exposed_s(split, draw)
        if draw is None or split.devices == 1:
            return step_s
        spread = math.hypot(self.time.residual, FLEET_SPREAD)
        return step_s * math.exp(spread * _FLEET[draw % DRAWS])

    def steps_at(self, batch: int, draw: int | None = None) -> float:
        """Steps to the same result; 1 at the reference where they are not known.

        Args:
            batch: Examples of a step.
            draw: Number of a draw of the critical batch; None: the fit itself.
        """
        if draw is None or self.steps is None:
            luck = 1.0
        else:
            luck = math.exp(RUN_SPREAD * _RUN[draw % DRAWS])
        if draw is not None:
            draw %= len(self.noise.draws)
        ratio = self.noise.relative_steps(batch, self.reference, draw)
        return (self.steps or 1.0) * ratio * luck

    def total_s(self, split: Split, draw: int | None = None) -> float:
        """Seconds to the result; where steps are not known, in a unit of its own."""
        training_s = self.steps_at(split.batch_size, draw) * self.step_s(split, draw)
        if self.steps is None or self.evaluation_s == 0:
            return training_s
        return training_s + min(self.evaluation_s, self.evaluation_share * training_s)

    def time_to_result(self, split: Split, fewest: Split | None = None) -> Estimate:
        """Seconds to the result with their interval; of another split's, as a ratio.

        The interval holds what step times, critical batch, network and runs leave open,
        and how far published fleets lie from these laws.
        """

        def time(draw: int | None) -> float:
            unit = 1.0 if fewest is None else self.total_s(fewest, draw)
            return self.total_s(split, draw) / unit

        return Estimate.from_draws(
            time(None),
            [time(draw) for draw in range(DRAWS)],
            unit="s" if fewest is None else "",
            n=self.noise.critical_batch.n,
            method="laws of time, noise and network",
        )

    @property
    def micro_batches(self) -> list[int]:
        """Those that may be planned, in order."""
        if self.allowed is not None:
            return sorted(self.allowed)
        least = min(self.time.smallest, self.most)
        powers = {2**i for i in range(self.most.bit_length())}
        return sorted({least, *(b for b in powers if b >= least), self.most})

    def best_split(self, devices: int) -> Split | None:
        """The split of least time to the result; None: too few examples for any."""
        splits = [
            Split(devices, micro_batch, 2**i)
            for micro_batch in self.micro_batches
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
        evaluation: Share of the time in which all but one wait for an evaluation.
        beyond: Whether no run behind the critical batch had so large a batch.
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
    evaluation: float
    beyond: bool
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
        pays_range: The same within what is not known, in 95 of 100 draws.
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
    best = map(fleet.best_split, wanted)
    splits = [split for split in best if split is not None]  # examples enough
    if not splits:
        least = fleet.micro_batches[0]
        raise SettingError(
            f"{wanted[0]:,} devices are more than there are examples for",
            seen=f"{fleet.examples:,} examples, {least:,} at the least on every device",
            why="devices share the examples of a step (data parallel); steps of fewer "
            "on a device were not timed, or are another function",
        )
    rows = tuple(_row(fleet, split, splits[0]) for split in splits)
    pays_up_to = _pays_up_to({row.devices: row.time.value for row in rows})
    return Cluster(
        rows=rows,
        pays_up_to=pays_up_to,
        reason=_reason(fleet, rows, pays_up_to, wanted[-1]),
        pays_range=_pays_range(fleet, splits),
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
    micro_batches = fleet.micro_batches
    least = micro_batches[0]
    # Of one micro-batch alone, as where examples touch, a batch is a multiple.
    unit = least if len(micro_batches) == 1 else 1
    low, high = math.ceil(row.batch_size / FLAT), int(row.batch_size * FLAT)
    high = max(min(high, fleet.examples), row.batch_size)

    def sizes(batch: int) -> list[int]:
        return world_sizes(batch // unit, min(devices, batch // least))

    def worth(batch: int) -> tuple[int, int]:
        return len(sizes(batch)), -abs(batch - row.batch_size)

    # Numbers with many divisors are multiples of these, which spares trying all.
    step = unit * next((s for s in (2520, 60) if high - low > 500 * unit * s), 1)
    tried = {row.batch_size, *range(-(-low // step) * step, high + 1, step)}
    best = max(tried, key=worth)
    return best, sizes(best)


def _row(fleet: Fleet, split: Split, fewest: Split) -> Row:
    speedup = fleet.total_s(fewest) / fleet.total_s(split)
    efficiency = speedup * fewest.devices / split.devices
    known = fleet.steps is not None
    training_s = fleet.steps_at(split.batch_size) * fleet.step_s(split)
    time = fleet.time_to_result(split, None if known else fewest)
    device_s = split.devices * time.value
    trained = fleet.largest_trained
    return Row(
        devices=split.devices,
        batch_size=split.batch_size,
        micro_batch=split.micro_batch,
        accumulation=split.accumulation,
        step_time_s=fleet.step_s(split),
        time=time,
        speedup=speedup,
        efficiency=efficiency,
        exposed=fleet.exposed_s(split) / fleet.step_s(split),
        evaluation=1 - training_s / time.value if known else 0.0,
        beyond=trained is not None and split.batch_size > trained,
        joules=device_s * fleet.watts if known and fleet.watts else None,
        money=device_s * fleet.per_hour / 3600 if known and fleet.per_hour else None,
        lost_to="" if efficiency > LITTLE else _lost_to(fleet, split.devices),
    )


def _lost_to(fleet: Fleet, devices: int) -> str:
    """What most of the efficiency is lost to: the want whose absence would help most.

    Each is taken away in turn (an endless critical batch, a network that costs nothing,
    steps without a fixed part, no evaluations, data without end) and the best split is
    looked for anew. Nothing is blamed whose absence would not help.
    """
    free = Network(bandwidth=1e30, latency_s=0.0)
    parameters = fleet.time.parameters.copy()
    parameters[0] *= 1e-6
    light = dataclasses.replace(fleet.time, parameters=parameters, update_s=0.0)
    without = {
        "B_crit": fleet.with_critical_batch(1e18),
        "network": dataclasses.replace(fleet, network=free),
        "small b": dataclasses.replace(fleet, time=light),
        "evaluation": dataclasses.replace(fleet, evaluation_s=0.0),
        "data": dataclasses.replace(fleet, examples=10**18),
    }
    times = {name: _relative_time(other, devices) for name, other in without.items()}
    worst = min(times, key=lambda name: times[name])
    helps = HELPS * times[worst] < _relative_time(fleet, devices)
    return worst if helps else ""


def _relative_time(fleet: Fleet, devices: int) -> float:
    """The least time on so many devices over that on one.

    An endless critical batch must not shorten the run on one device too: progress is
    what one device makes.
    """
    split, alone = fleet.best_split(devices), fleet.best_split(1)
    assert split is not None
    assert alone is not None
    return fleet.total_s(split) / fleet.total_s(alone)


def _pays_range(fleet: Fleet, splits: Sequence[Split]) -> tuple[int, int]:
    """How many devices pay, in the central 95 % of draws; the fit itself is held."""

    def pays(draw: int | None) -> int:
        return _pays_up_to({s.devices: fleet.total_s(s, draw) for s in splits})

    ends, cut = sorted(pays(draw) for draw in range(DRAWS)), DRAWS // 40
    return min(ends[cut], pays(None)), max(ends[-1 - cut], pays(None))


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
            least = fleet.micro_batches[0]
            return (
                f"the data set has {fleet.examples:,} examples only, and a device "
                f"takes {least:,} of a step at the least"
            )
        return f"each step up makes it {PAYS} x as fast or more a doubling"
    critical = show_number(fleet.noise.critical_batch.value)
    cause = {
        "B_crit": f"the critical batch ({critical} examples): beyond it a larger batch "
        "adds little that is new",
        "small b": "the fixed cost of a step, as a device's micro-batches become small",
        "network": "the exchange of gradients, which computing no longer covers",
        "evaluation": "the evaluations, which more devices do not shorten",
        "data": f"the data set's end: no batch is larger than {fleet.examples:,}",
        "": "no single cause",
    }[_lost_to(fleet, following.devices)]
    gain = last.time.value / following.time.value
    return (
        f"{following.devices:,} devices would be {gain:.2f} x as fast as "
        f"{pays_up_to:,}: lost to {cause}"
    )
