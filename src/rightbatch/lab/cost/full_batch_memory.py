"""A full-batch gradient does not need all examples in memory at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import batch_gradient, started
from rightbatch.memory.envelope import fit_envelope
from rightbatch.memory.step import step_of
from rightbatch.memory.traced_step import trace_step

SIZES = (256, 1024, 4096)  # of the data set
MICRO = 64
RAGGED = 1000  # examples whose last piece of 64 is short: a mean of means would show


def made_job(seed: int) -> Job:
    """A small network on made data: 64 numbers an example, four classes."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(RAGGED, 64, generator=random)
    return Job(
        model=lambda: nn.Sequential(
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 4),
        ),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        data=(x, x[:, :4].argmax(1)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=MICRO,
        seed=seed,
    )


def distance(one: Tensor, other: Tensor) -> float:
    """Of a gradient from another, relative to that."""
    return float((one - other).norm() / other.norm())


def run(trial: Trial) -> Seen:
    """Peak bytes of the step, traced; and its gradient, made both ways."""
    job, sizes = made_job(trial.seed), trial.size(SIZES, (*SIZES, 16384))
    trial.tell("tracing whole steps")
    whole = [max(t.bytes) for t in trace_step(step_of(job), sizes)]
    law = fit_envelope(trace_step(step_of(job), (64, 128, 256)))
    pieces = []
    for n in sizes:
        trial.tell(f"tracing {n // MICRO} pieces")
        step = step_of(job, accumulation=n // MICRO)
        pieces.append(max(trace_step(step, (MICRO,))[0].bytes))
    with started(job) as state:
        state.split(RAGGED)
        rows = torch.arange(RAGGED)
        at_once = batch_gradient(state, rows)
        means = torch.stack([batch_gradient(state, part) for part in rows.split(MICRO)])
        state.split(RAGGED, MICRO)
        in_pieces = batch_gradient(state, rows)
    growth = pieces[-1] / pieces[0]
    checks = (
        at_least(
            "least peak memory of a full-batch step, 16 times the examples over once",
            4.0,
            growth,
            wrong={"a peak that is flat": 1.0},
        ),
        at_most(
            "the same, in pieces of 64",
            1.01,
            growth,
            wrong={"all at once": whole[2] / whole[0]},
            part="correction",
        ),
        equals(
            "peak of all at once over the law of smaller ones",
            1.0,
            whole[2] / law.peak(sizes[2]),
            within=0.02,
            wrong={"in pieces": pieces[2] / law.peak(sizes[2])},
            part="correction",
        ),
        at_most(
            "distance of the gradient in pieces from that at once",
            1e-5,
            distance(in_pieces, at_once),
            wrong={
                "a mean of the pieces' means": distance(means.mean(0), at_once),
                "the last piece left out": distance(means[:-1].mean(0), at_once),
            },
            part="correction",
        ),
    )
    chart = plot(
        [
            Series("all at once", sizes, [p / 2**20 for p in whole], "points"),
            Series(
                f"in pieces of {MICRO}", sizes, [p / 2**20 for p in pieces], "points"
            ),
            Series(
                "law of steps up to 256",
                sizes,
                [law.peak(n) / 2**20 for n in sizes],
                "dashed",
            ),
        ],
        "examples N in the full batch",
        "peak memory of the step (MiB)",
        log="xy",
    )
    return Seen(
        checks,
        (
            Chart(
                "The same gradient: all activations at once, or those of one piece.",
                "同一个梯度：一次保存全部激活值，或只保存一小份的激活值。",
                chart,
            ),
        ),
    )


CLAIM = Claim(
    id="full-batch-memory",
    texts=(
        "3 实践的驱动力：内存与计算效率: BGD must keep all data and activations in "
        "memory",
        "3 梯度下降家族: full batch is infeasible for large data sets",
        "2 实用主义者的选择: a very large batch may not fit in memory",
    ),
    theory="sum over i of grad l_i = sum over pieces; peak(N) = peak of one piece",
    verdict="fails as written",
    seconds=3,
    power="traced to the byte, gradients to float32; --full goes on to 16,384 examples",
    en=Words(
        title="Full batch needs all data and activations in memory",
        claimed="Batch gradient descent cannot be run on data that do not fit in "
        "memory, since one update needs all examples and all their activations there.",
        assumed="The loss is a sum over examples, so its gradient is a sum too: what a "
        "piece has added can be forgotten. It does not hold where examples touch.",
        seen="A step's memory is traced operation by operation. Made at once, it grows "
        "in proportion to N; made in pieces of 64, it stays the same to the byte, and "
        "the two gradients differ by rounding only.",
        answer="accumulation makes the exact full-batch gradient in the memory of one "
        "piece; what a full batch costs is time, not memory",
    ),
    zh=Words(
        title="全批量需要把全部数据和激活值放进内存",
        claimed="数据放不进内存就无法做批量梯度下降，因为一次更新要同时保留所有样本及其"
        "激活值。",
        assumed="损失是样本之和，梯度也是：一小份加进去之后就可以丢掉。样本相互接触时不"
        "成立。",
        seen="逐个运算追踪一步所占的内存：一次算完时随 N 成比例增长；分成每份 64 个样本"
        "时，峰值一个字节也不变，而两个梯度只差舍入误差。",
        answer="梯度累积用一小份的内存就得到精确的全批量梯度；全批量耗费的是时间，不是"
        "内存",
    ),
    run=run,
)
