"""Slow and obviously right: what the fast code is tested against."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rightbatch as rb


def whole_batch_gradient(
    job: rb.Job, model: torch.nn.Module, batch: Any
) -> list[Tensor]:
    """The gradient of the mean loss of a batch taken at once, by autograd."""
    result = job.loss(model, batch)
    loss = result[0] / result[1] if isinstance(result, tuple) else result
    params = [p for p in model.parameters() if p.requires_grad]
    return [g.clone() for g in torch.autograd.grad(loss, params)]


def per_example_gradients(job: rb.Job, model: torch.nn.Module) -> Tensor:
    """Every example's own gradient, one backward pass each; (examples, parameters)."""
    rows = []
    for i in range(job.length):
        batch = job.batch([i], torch.device("cpu"))
        rows.append(
            torch.cat([g.flatten() for g in whole_batch_gradient(job, model, batch)])
        )
    return torch.stack(rows).double()


def true_noise(job: rb.Job, model: torch.nn.Module) -> tuple[float, float]:
    """|G|^2 and tr Sigma over the whole data set, by their definitions."""
    rows = per_example_gradients(job, model)
    mean = rows.mean(0)
    return float(mean @ mean), float((rows - mean).square().sum(1).mean())


def pairwise_moments(gradients: np.ndarray, group_size: int) -> tuple[float, float]:
    """Signal as the mean inner product of different groups; noise from the rest."""
    pairs = list(itertools.permutations(range(len(gradients)), 2))
    signal = sum(float(gradients[i] @ gradients[j]) for i, j in pairs) / len(pairs)
    norms = sum(float(g @ g) for g in gradients) / len(gradients)
    return signal, group_size * (norms - signal)


def relative_time(
    t0: float, t1: float, critical: float, b: float, today: float
) -> float:
    """Time to the same result over today's, from the two laws written out."""

    def total(x: float) -> float:
        return (t0 + t1 * x) * (1 + critical / x)

    return total(b) / total(today)


def steps_by_grid(b: np.ndarray, steps: np.ndarray) -> float:
    """B_crit of least squares in log examples, by brute force over a fine grid."""
    log_examples = np.log(b * steps)
    best, found = math.inf, math.nan
    for critical in np.geomspace(b.min() / 100, b.max() * 100, 20_001):
        rest = log_examples - np.log1p(b / critical)
        loss = float(np.square(rest - rest.mean()).sum())
        if loss < best:
            best, found = loss, float(critical)
    return found


def steps_by_law(
    batch_size: float,
    lr: float,
    critical: float,
    power: float,
    price: float,
    lr_max: float,
) -> float:
    """The law of batch and rate as it is written down, least steps being 1."""
    more = 1 + critical / batch_size
    x = lr * more**power / lr_max
    return more * (1 / x + x**price / price) / (1 + 1 / price)


def law_by_loops(
    parameters: Sequence[float],
    today: tuple[int, float],
    settings: Sequence[tuple[int, float]],
    depth: float = 0.0,
) -> list[float]:
    """Log of steps by the law, from its six parameters, one setting after another.

    The largest rate is counted from ``today``; N and it have moved along the run by
    ``depth``, the log of a share of its time.
    """
    log_n, log_x, power, log_price, growth, drift = parameters
    batch_today, lr_today = today
    lr_max = lr_today * (1 + math.exp(log_n) / batch_today) ** power / math.exp(log_x)
    return [
        math.log(
            steps_by_law(
                batch_size,
                lr,
                math.exp(log_n + growth * depth),
                power,
                math.exp(log_price),
                lr_max * math.exp(drift * depth),
            )
        )
        for batch_size, lr in settings
    ]


def steps_by_scan(
    start: float, steps: Sequence[int], metrics: Sequence[float], level: float
) -> float:
    """Steps to a level of a metric that is to be small, by hundredths of a step.

    Between evaluations the best so far is taken to go along a straight line, and
    straight on to a value after one that is not finite.
    """
    best, before, behind = start, start, 0.0
    for step, metric in zip(steps, metrics, strict=True):
        best = min(best, metric) if math.isfinite(metric) else best
        for hundredth in range(101):
            share = hundredth / 100
            value = best if share == 1 else before + (best - before) * share
            if value <= level:
                return behind + (step - behind) * share
        before, behind = best, step
    return math.inf


def levels_by_scan(
    start: float, lanes: Sequence[tuple[float, Sequence[int], Sequence[float]]]
) -> list[float]:
    """The best metric of all lanes at 1/8, 1/4, 1/2 and 4/5 of the common time.

    ``lanes`` are seconds a step, steps and metrics; the time is what two have trained.
    Kept are levels that improve, which their first took four steps for.
    """
    ends = sorted(step_s * steps[-1] for step_s, steps, _ in lanes)
    time = ends[-2] if len(ends) > 1 else ends[0]
    levels: list[float] = []
    for share in (0.125, 0.25, 0.5, 0.8):
        seen = [
            metric
            for step_s, steps, metrics in lanes
            for step, metric in zip(steps, metrics, strict=True)
            if step * step_s <= share * time * (1 + 1e-9)
        ]
        level = min([start, *seen])
        passed = [
            (step_s * steps_by_scan(start, steps, metrics, level), step_s)
            for step_s, steps, metrics in lanes
        ]
        seconds, step_s = min(passed)
        if level < min([start, *levels]) and seconds / step_s >= 4:
            levels.append(level)
    return levels


def normal_update(
    mean: float, sd: float, seen: Sequence[float], scatter: float
) -> tuple[float, float]:
    """Mean and standard deviation of a normal belief after normal observations."""
    precision, weighted = 1 / sd**2, mean / sd**2
    for value in seen:
        precision += 1 / scatter**2
        weighted += value / scatter**2
    return weighted / precision, math.sqrt(1 / precision)


def quadratic_steps(
    batch_size: int,
    lr: float,
    *,
    width: int = 128,
    target: float = 0.004,
    runs: int = 32,
) -> float:
    """Steps of `cases.noisy_quadratic_job` to its target, by simulation.

    Coordinates are trained one by one on gradients with independent normal noise;
    the geometric mean of many runs, infinite where they diverge.
    """
    random = np.random.default_rng(0)
    steep = np.logspace(0, -1.5, width)
    at = np.ones((runs, width))
    first = np.full(runs, np.inf)
    for step in range(1, 2000):
        noise = random.standard_normal(at.shape) / math.sqrt(batch_size)
        at = at - lr * steep * (at - noise)
        loss = 0.5 * (steep * at**2).mean(1)
        first = np.where((loss <= target) & np.isinf(first), step, first)
        if np.isfinite(first).all():
            return float(np.exp(np.log(first).mean()))
        if loss.max() > 1e6:
            return math.inf
    return math.inf


def group_gradients(
    model: torch.nn.Module, loss: Any, inputs: list[torch.Tensor], cuts: list[int]
) -> list[list[torch.Tensor]]:
    """Each group's part of the gradient: its examples alone, one backward each.

    ``loss(model, inputs)`` is a sum over examples; inputs have them on axis 0.
    """
    found = []
    for a, b in itertools.pairwise(cuts):
        value = loss(model, [x[a:b] for x in inputs])
        parameters = list(model.parameters())
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        found.append(
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, grads, strict=True)
            ]
        )
    return found


def noise_by_pairs(parts: list[torch.Tensor], sizes: list[int]) -> tuple[float, float]:
    """|G|^2 and tr Sigma from a batch's groups, from the definitions alone.

    Signal: inner products of different groups' mean gradients, each pair weighted by
    the product of its sizes. Noise: what the batch gradient's parts have beyond it.
    """
    batch = sum(sizes)
    signal = weight = 0.0
    for i, j in itertools.permutations(range(len(parts)), 2):
        signal += float(
            (parts[i] * parts[j]).sum()
        )  # parts are sums over the batch's B
        weight += sizes[i] * sizes[j] / batch**2
    signal /= weight
    squares = sum(float(p.square().sum()) for p in parts)
    return signal, batch * (squares - signal * sum((m / batch) ** 2 for m in sizes))


def gradients(model: nn.Module, losses: Iterable[Tensor]) -> list[Tensor]:
    """Each loss's own gradient, flat."""
    parameters = list(model.parameters())
    rows = (torch.autograd.grad(loss, parameters) for loss in losses)
    return [torch.cat([g.flatten() for g in row]).double() for row in rows]


def _mixed(word: int) -> int:
    """splitmix64's finalizer, on Python integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def permuted(position: int, length: int, seed: int, epoch: int) -> int:
    """The example at one position of an epoch, in plain integers."""
    text = f"epoch/{seed}/{epoch}/{length}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    rows = math.isqrt(length - 1) + 1 if length > 1 else 1
    columns = -(-length // rows)
    found = position
    while True:
        left, right = divmod(found, columns)
        rounds = 12 if length < 64 else 8 if length < 1024 else 6
        for number in range(rounds if length < 65536 else 4):
            if number % 2:
                right = (right + _hashed(left, key, number, columns)) % columns
            else:
                left = (left + _hashed(right, key, number, rows)) % rows
        found = left * columns + right
        if found < length:
            return found


def _hashed(half: int, key: int, number: int, size: int) -> int:
    """A number below ``size``, from half a position and a round's two words."""
    words = [_mixed((key + j * 0x9E3779B97F4A7C15) % 2**64)
             for j in (2 * number + 1, 2 * number + 2)]  # fmt: skip
    word = (half ^ words[0]) % 2**32
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = ((word ^ word >> 15) + words[1]) * 0x846CA68B % 2**32
    return word * size >> 32


def epochs(length: int, seed: int, count: int) -> list[int]:
    """The examples of the first epochs, one position at a time."""
    return [i for number in range(count) for i in epoch(length, seed, number)]


@functools.cache
def epoch(length: int, seed: int, number: int) -> tuple[int, ...]:
    """The examples of one epoch."""
    return tuple(permuted(p, length, seed, number) for p in range(length))


def distinct_batches(
    order: list[int], keys: list[set[int]], sizes: list[int]
) -> list[list[int]]:
    """Batches without a common key: those that wait first, then on along the order."""
    waiting: list[int] = []
    ahead, batches = iter(order), []
    for size in sizes:
        batch: list[int] = []
        used: set[int] = set()
        still = []
        for example in waiting:
            if len(batch) < size and not keys[example] & used:
                batch.append(example)
                used |= keys[example]
            else:
                still.append(example)
        while len(batch) < size:
            example = next(ahead)
            if keys[example] & used:
                still.append(example)
            else:
                batch.append(example)
                used |= keys[example]
        batches.append(batch)
        waiting = still
    return batches


def whole_gradient(
    model: nn.Module, loss: Any, examples: Sequence[Any]
) -> torch.Tensor:
    """Of the sum of all examples' losses over the sum of their counts, in double.

    One example at a time, so nothing depends on how batches are made.
    """
    model = model.double()
    model.zero_grad(set_to_none=True)
    total, counted = torch.zeros((), dtype=torch.float64), 0.0
    for example in examples:
        value, count = loss(model, example)
        total = total + value
        counted += float(count)
    (total / counted).backward()
    return torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


# SGD on one direction of a quadratic, chain by chain


def scatter_of_sgd(
    lr: float,
    curvature: float,
    batch: int,
    momentum: float = 0.0,
    *,
    chains: int,
    examples: int = 0,
    seed: int = 0,
) -> float:
    """Variance of the weight over many chains, after 12 memories of the slowest mode.

    The loss is ``curvature w^2 / 2`` and the noise of one example has variance 1:
    normal and drawn anew, or with ``examples`` that of a data set whose epochs are
    reshuffled, and then taken where an epoch ends.
    """
    rng = np.random.default_rng(seed)
    memory = 2 * (1 - momentum) / (lr * curvature) + 2 / (1 - momentum)
    steps = math.ceil(12 * memory)
    weight, velocity = np.zeros(chains), np.zeros(chains)
    data = rng.standard_normal(max(examples, 1))
    orders = data[None]
    if examples:
        data = (data - data.mean()) / data.std()
        steps = -(-steps // (examples // batch)) * (examples // batch)
    for step in range(steps):
        if examples:
            at = step % (examples // batch)
            if at == 0:
                orders = rng.permuted(np.tile(data, (chains, 1)), axis=1)
            noise = orders[:, at * batch : (at + 1) * batch].mean(1)
        else:
            noise = rng.standard_normal(chains) / math.sqrt(batch)
        velocity = momentum * velocity + curvature * weight + noise
        weight = weight - lr * velocity
    return float(weight.var())


def reshuffled_share(decay: float, batch: int, examples: int) -> float:
    """Variance at epochs' ends over lr^2, without momentum, by the plain double sum."""
    n = examples // batch
    factors = [decay ** (n - 1 - j) for j in range(n)]
    variance = (examples - batch) / (examples - 1) / batch
    epoch = sum(
        factors[i] * factors[j] * (variance if i == j else -1 / (examples - 1))
        for i in range(n)
        for j in range(n)
    )
    return epoch / (1 - decay ** (2 * n))


# Landscape: sharpness


def dense_hessian(job: rb.Job, model: nn.Module, batch: Any) -> Tensor:
    """Every second derivative of a batch's mean loss, one backward pass a row."""
    result = job.loss(model, batch)
    loss = result[0] / result[1] if isinstance(result, tuple) else result
    parameters = list(model.parameters())
    rows = []
    for part in torch.autograd.grad(loss, parameters, create_graph=True):
        for entry in part.flatten():
            row = torch.autograd.grad(entry, parameters, retain_graph=True)
            rows.append(torch.cat([r.flatten() for r in row]))
    return torch.stack(rows)


def mean_rise(
    job: rb.Job, model: nn.Module, batch: Any, draws: int
) -> tuple[float, float, float]:
    """Loss, its rise 0.05 uphill, and its mean rise under weights (1 + 0.1 normal)."""
    compute: Any = job.loss
    moved, value = copy.deepcopy(model), compute(model, batch)
    gradient = torch.autograd.grad(value, list(model.parameters()))
    loss = float(value.detach())
    length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    rises = []
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p += 0.05 * g / length
        sam = float(compute(moved, batch)) - loss
        for _ in range(draws):
            for p, q in zip(moved.parameters(), model.parameters(), strict=True):
                p.copy_(q * (1 + 0.1 * torch.randn_like(q)))
            rises.append(float(compute(moved, batch)) - loss)
    return loss, sam, float(np.mean(rises))
