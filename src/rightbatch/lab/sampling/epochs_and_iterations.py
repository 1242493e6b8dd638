"""An epoch is ceil(N / b) iterations, the last of them short."""

from __future__ import annotations

import numpy as np
import torch

from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.stream import BatchStream
from rightbatch.lab.check import equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot

ITERATIONS = 100_000


def epoch_sizes(examples: int, b: int, seed: int, tail: str = "keep") -> list[int]:
    """Examples in each batch of one epoch, gone through batch by batch."""
    return [len(batch) for batch in BatchSampler(examples, b, seed=seed, tail=tail)]


def run(trial: Trial) -> Seen:
    """Epochs of the texts' data sets, counted by going through them."""
    sizes = {
        (n, b): epoch_sizes(n, b, trial.seed)
        for n, b in ((245_760, 256), (50_000, 128), (1_250_000, 512))
    }
    even, ragged, large = sizes.values()
    seen = {i for batch in BatchSampler(50_000, 128, seed=trial.seed) for i in batch}
    trial.tell(f"{ITERATIONS:,} iterations")
    # Rows of no columns: an order of a million examples that reads nothing.
    stream = BatchStream((torch.empty(1_250_000, 0),), 512, seed=trial.seed)
    stream.skip(ITERATIONS)

    left = (ITERATIONS - 40 * 2442) * 512
    exact = ITERATIONS * 512 - 40 * 1_250_000
    counted: list[tuple[str, int, int, str, int]] = [
        ("iterations of 256 in 245,760", 960, len(even), "one more", 961),
        ("batches of 128 in 50,000", 391, len(ragged), "rounded down", 390),
        ("whole ones among them", 390, ragged.count(128), "all whole", 391),
        ("examples in the last", 80, ragged[-1], "filled up", 128),
        ("different examples seen", 50_000, len(seen), "short one dropped", 49_920),
        ("batches of 512 in 1,250,000", 2442, len(large), "rounded down", 2441),
        ("whole epochs in 100,000", 40, stream.epoch, "rounded up", 41),
        ("examples seen after them", left, stream.position, "N / 512 steps", exact),
    ]
    checks = tuple(
        equals(what, theory, float(measured), wrong={name: float(wrong)})
        for what, theory, measured, name, wrong in counted
    )
    batches = np.unique(np.geomspace(100, 40_000, 50).astype(int)).tolist()
    kept = [sum(epoch_sizes(50_000, b, trial.seed, "drop")) for b in batches]
    series = [
        Series("counted", batches, [1 - k / 50_000 for k in kept], "points"),
        Series("(N mod b) / N", batches, [50_000 % b / 50_000 for b in batches]),
    ]
    chart = Chart(
        "Of 50,000 examples: what an epoch loses if the short batch is left out.",
        "50,000 个样本：若丢弃最后的小批次，每个轮次损失的比例。",
        plot(series, "batch size b", "share of an epoch in its short batch", log="x"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="epochs-and-iterations",
    texts=(
        "1 旅途中的词汇: 245,760 / 256 = 960; 50,000 / 128 = 390 + 80",
        "3 迭代与周期: I = ceil(N / B); ceil(1,250,000 / 512) = 2,442; "
        "floor(100,000 / 2,442) = 40",
    ),
    theory="iterations of an epoch = ceil(N / b); the last holds N - b floor(N / b)",
    verdict="holds",
    seconds=4,
    power="counts are exact; the reduced size is the full one",
    en=Words(
        title="How many steps an epoch has",
        claimed="An epoch of N examples takes ceil(N / b) iterations, since what does "
        "not fill a batch makes a short one of its own.",
        assumed="The short batch is kept; no batch reaches over into the next epoch.",
        seen="Streams over data sets of the texts' sizes are gone through batch by "
        "batch. Every number of the texts comes out, and every example is seen once. "
        "A loader that drops the short batch may lose up to half of an epoch.",
    ),
    zh=Words(
        title="一个轮次有多少步",
        claimed="N 个样本的一个轮次需要 ceil(N / b) 次迭代：凑不满的样本单独成为"
        "最后一个较小的批次。",
        assumed="保留最后的小批次，且批次不跨越轮次。",
        seen="按文中的数据量逐批走完整个数据流，文中的每个数字都得到验证，"
        "每个样本恰好出现一次。若丢弃小批次，最多可能损失近半个轮次。",
    ),
    run=run,
)
