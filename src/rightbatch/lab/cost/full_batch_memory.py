"""A full-batch gradient does not need all examples in memory at once."""

from __future__ import annotations

from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.accumulation import distance, gradient_of, mean_of_means
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import digits_job
from rightbatch.memory.envelope import fit_envelope
from rightbatch.memory.step import step_of
from rightbatch.memory.traced_step import trace_step

SIZES = (256, 1024, 4096)  # of the data set
MICRO = 128
RAGGED = 1000  # examples whose last piece of 128 is short: a mean of means would show
MIB = 2**20


def peak_bytes(job: Job, micro: int, pieces: int = 1) -> int:
    """Most bytes alive in a traced step of so many micro-batches."""
    (trace,) = trace_step(step_of(job, pieces), (micro,))
    return max(trace.bytes)


def run(trial: Trial) -> Seen:
    """Peak bytes of the step, traced; and its gradient, made both ways."""
    job, sizes = digits_job(seed=trial.seed), trial.size(SIZES, (*SIZES, 16384))
    trial.tell("tracing steps")
    law = fit_envelope(trace_step(step_of(job), (64, 128, 256)))
    whole = [peak_bytes(job, n) for n in sizes]
    pieces = [peak_bytes(job, MICRO, n // MICRO) for n in sizes]
    at_once = gradient_of(job, RAGGED, RAGGED)
    apart = distance(gradient_of(job, RAGGED, MICRO), at_once)
    means = distance(mean_of_means(job, RAGGED, MICRO), at_once)
    growth, all_growth = pieces[2] / pieces[0], whole[2] / whole[0]
    held, less = whole[2] / law.peak(sizes[2]), pieces[2] / law.peak(sizes[2])
    part = "correction"
    checks = (
        at_least("least peak, 16 N over N", 4.0, growth, wrong={"a flat peak": 1.0}),
        at_most("in pieces", 1.01, growth, wrong={"at once": all_growth}, part=part),
        equals(
            "at once / law", 1.0, held, margin=0.02, wrong={"pieces": less}, part=part
        ),
        at_most(
            "gradients apart", 1e-5, apart, wrong={"mean of means": means}, part=part
        ),
    )
    series = [
        Series("all at once", sizes, [p / MIB for p in whole], "points"),
        Series(f"in pieces of {MICRO}", sizes, [p / MIB for p in pieces], "points"),
        Series("law of steps up to 256", sizes, [law.peak(n) / MIB for n in sizes]),
    ]
    chart = plot(series, "examples N", "peak memory of a step (MiB)", log="xy")
    caption = "The same gradient: all activations at once, or those of one piece."
    zh = "同一个梯度：保存全部激活值，或只保存一小份的。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="full-batch-memory",
    texts=("3 实践的驱动力：内存与计算效率: BGD must hold all data and activations",),
    theory="grad of sum over N = sum of grads of pieces; peak(N) = peak of one piece",
    verdict="fails as written",
    seconds=3,
    power="traced to the byte, gradients to float32; --full goes on to 16,384 examples",
    en=Words(
        title="Full batch needs all data and activations in memory",
        claimed="Batch gradient descent cannot be run on data that do not fit in "
        "memory: one update needs all examples and their activations there.",
        assumed="The loss is a sum over examples that do not touch, so a piece can be "
        "forgotten once its gradient is added.",
        seen="A step is traced operation by operation. Made at once its memory grows "
        "with N; in pieces it stays the same to the byte, and the two gradients differ "
        "by rounding only.",
        answer="accumulation makes the exact full-batch gradient in the memory of one "
        "piece; a full batch costs time, not memory",
    ),
    zh=Words(
        title="全批量需要把全部数据和激活值放进内存",
        claimed="数据放不进内存就无法做批量梯度下降：一次更新要同时保留所有样本及其激活"
        "值。",
        assumed="损失是互不接触的样本之和，一小份的梯度加进去之后就可以丢掉。",
        seen="逐个运算追踪一步的内存：一次算完时随 N 增长；分份时一个字节也不变，而两个"
        "梯度只差舍入误差。",
        answer="梯度累积用一小份的内存就得到精确的全批量梯度；全批量耗费时间，不是内存",
    ),
    run=run,
)
