"""Whether the examples of a batch touch each other, found by exchanging halves of it.

Where they do not, a half adds the same to the loss beside every other half: over all
pairs of a first and a second half the loss is something of the first plus something of
the second, up to rounding; under dropout too, as long as shapes and random numbers are
the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from rightbatch.core.errors import JobError
from rightbatch.core.findings import Coupled
from rightbatch.core.guards import evaluating, preserved_rng, untouched
from rightbatch.core.torch_private import BatchNorm, as_written, is_out_of_memory
from rightbatch.core.trees import select_examples
from rightbatch.coupling.random_draws import RandomDraws
from rightbatch.job.job import Job
from rightbatch.job.loss import scalar_loss

# First halves, and as many second ones: the smallest square table with more values (16)
# than a mean of means has unknowns (13). [derived]
SIDE = 4
HALF = 4  # examples of a half; one, where that takes too long [assumed]
ALLOWANCE_S = 3.0  # for two tables [assumed]
# Examples that forward passes see at the least: two of eight, then nineteen of two.
LEAST_EXAMPLES = 54  # [derived]
# An interaction holds 2.25 roundings of the loss, half an eps each; and, before these,
# twice those of sums in pairs over up to 2^16 terms in float32. [derived]
LAST, BEFORE = 1.125, 36 * torch.finfo(torch.float32).eps
AWAKE = 0.1  # times 1/sqrt(fan in): what stands for weights that are all zero [assumed]

Table = Float64[np.ndarray, "first second"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """Whether the examples of a batch touch each other, and where.

    Attributes:
        kind: ``"normalization"``: in training mode only; ``"loss"``: in eval mode too.
        share: How far one half changes what the other costs, over the loss.
        examples: In each of the batches compared.
        mean_of_means: Whether the loss is a plain mean over something else than
            examples, such as tokens: their weights depend on the batch, nothing else.
        by_type: Whether the job could not be probed, so that only its layers tell.
    """

    kind: Coupled
    share: float = 0.0
    examples: int = 0
    mean_of_means: bool = False
    by_type: bool = False


def find_coupling(
    job: Job, model: nn.Module, *, allowance_s: float = ALLOWANCE_S
) -> Coupling:
    """Find out whether the examples of a batch touch each other.

    Nineteen forward passes of eight examples, or of two; where they touch, twenty more.
    The model and all random states are left as they were.

    What touches in training mode only is a normalization to it, whatever it is; a
    normalization by the batch in eval mode too counts as a loss. What changes gradients
    but not the value of the loss is not seen. Layers tell by their type where a job
    fails at these sizes, is not repeatable, or draws random numbers whose shapes
    depend on the data.

    Args:
        job: A few of its examples, spread over the data, are looked at.
        model: The job's, in the mode it trains in.
        allowance_s: Seconds above which halves are of one example.

    Example:
        >>> import rightbatch as rb
        >>> job = rb.load_job("digits")
        >>> find_coupling(job, job.make_model()).kind
        ''
    """
    try:
        with preserved_rng(), nothing_zero(model), as_written():
            torch.manual_seed(job.seed)
            found = _probed(job, model, allowance_s)
    except (JobError, RuntimeError, MemoryError) as error:
        if not isinstance(error, JobError) and not is_out_of_memory(error):
            raise
        found = None
    return found or coupling_by_type(model)


def _probed(job: Job, model: nn.Module, allowance_s: float) -> Coupling | None:
    """What the exchange of halves tells; None: nothing."""
    size = max(1, min(HALF, job.batch_size // 2, job.length // (2 * SIDE)))
    halves = _Halves(job, model, size)
    halves.loss(0, 0)  # a model's first pass takes longer than others
    started = time.monotonic()
    halves.loss(0, 0)
    if (time.monotonic() - started) * 2 * SIDE**2 > allowance_s:
        halves = _Halves(job, model, 1)
    training = halves.table()
    if not halves.repeat(training):
        return None
    kind: Coupled = ""
    if halves.touch(training):
        with evaluating(model):
            kind = "loss" if halves.touch(halves.table()) else "normalization"
    if kind not in ("", coupling_by_type(model).kind) and not halves.draw_alike():
        return None
    return Coupling(
        kind=kind,
        share=interaction(training) / max(float(abs(training).max()), 1e-30),
        examples=2 * halves.size,
        mean_of_means=not kind and not halves.add(training),
    )


class _Halves:
    """First and second halves of a batch, each of other examples, to be combined.

    The examples are read and collated once: padding and augmentation stay the same.
    """

    def __init__(self, job: Job, model: nn.Module, size: int) -> None:
        self.job, self.model, self.size = job, model, size
        self.count = 2 * SIDE * size
        device = next(model.parameters()).device
        spread = [k * job.length // self.count for k in range(self.count)]
        self.examples = job.batch(spread, device)
        self.rounding, self.is_sum = 0.0, False

    def loss(self, first: int, second: int) -> float:
        """Of a batch of two halves: its mean, or its sum where that is returned."""
        starts = (first * self.size, (SIDE + second) * self.size)
        indices = [start + k for start in starts for k in range(self.size)]
        batch = select_examples(self.examples, indices, self.count)
        parameters = list(self.model.parameters())
        with preserved_rng(), untouched(self.model, parameters), torch.enable_grad():
            value, count = scalar_loss(self.job.loss, self.model, batch, None)
        self.rounding = LAST * torch.finfo(value.dtype).eps + BEFORE
        self.is_sum = count is not None
        return float(value.detach())

    def table(self) -> Table:
        """The loss of every pair of halves."""
        sides = range(SIDE)
        return np.array([[self.loss(i, j) for j in sides] for i in sides])

    def tolerance(self, table: Table) -> float:
        """What rounding may make of an interaction."""
        return self.rounding * float(abs(table).max())

    def repeat(self, table: Table) -> bool:
        """Whether the same batch has the same loss again, and all are finite."""
        difference = abs(self.loss(0, 0) - table[0, 0])
        return bool(np.isfinite(table).all() and difference <= self.tolerance(table))

    def add(self, table: Table) -> bool:
        """Whether every half adds the same beside every other."""
        return interaction(table) <= self.tolerance(table)

    def touch(self, table: Table) -> bool:
        """Whether a half changes what the other costs, beyond its weight in a mean."""
        means = not self.is_sum and is_mean_of_means(table, self.tolerance(table))
        return not (self.add(table) or means)

    def draw_alike(self) -> bool:
        """Whether random numbers are drawn for the same shapes beside every half.

        Otherwise (dropout on a packed sequence) a half meets other numbers beside
        another half, which looks as if they touched.
        """
        draws = [RandomDraws() for _ in range(SIDE)]
        for number, draw in enumerate(draws):
            with draw:
                self.loss(number, number)
        return all(draw.shapes == draws[0].shapes for draw in draws)


def interaction(table: Table) -> float:
    """The largest part of a table that no sum of rows and columns explains.

    Example:
        >>> interaction(np.array([[1.0, 2.0], [11.0, 12.0]]))
        0.0
    """
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    return float(abs(table - rows - columns + table.mean()).max())


def is_mean_of_means(table: Table, tolerance: float) -> bool:
    """Whether ``table[i, j] = (s_i + t_j) / (n_i + m_j)``, sums over positive counts.

    With ``n_0 + m_0 = 1``, and multiplied by the denominator, that is linear.

    Args:
        table: At least four by four.
        tolerance: How far off a value may be.
    """
    side = len(table)
    first = np.repeat(np.eye(side), side, axis=0)
    second = np.tile(np.eye(side), (side, 1))
    values = (table - table.mean()).reshape(-1, 1)
    counted = np.hstack([first[:, 1:], second[:, 1:]])
    summed = np.hstack([first, second[:, 1:]])
    equations = np.hstack([values * counted, -summed])
    solution = np.linalg.lstsq(equations, -values[:, 0])[0]
    counts = 1 + counted @ solution[: counted.shape[1]]
    wrong = equations @ solution + values[:, 0]
    near = np.linalg.norm(wrong) <= tolerance * np.linalg.norm(counts)
    return bool(counts.min() > 0 and near)


def coupling_by_type(model: nn.Module) -> Coupling:
    """What the layers tell where the job itself does not, or has no time to."""
    norms = any(isinstance(m, BatchNorm) and m.training for m in model.modules())
    return Coupling(kind="normalization" if norms else "", by_type=True)


@contextmanager
def nothing_zero(model: nn.Module) -> Iterator[None]:
    """With small numbers in the place of parameters that are all zero.

    A last layer that begins at zero hides everything in front of it.
    """
    zero = [p for p in model.parameters() if p.requires_grad and not p.any()]
    with torch.no_grad():
        for parameter in zero:
            fan_in = max(parameter.shape[1:].numel(), 1)
            parameter.normal_(std=AWAKE / fan_in**0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zero:
                parameter.zero_()
