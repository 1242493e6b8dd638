"""A larger batch at the same rate is slow, in proportion, counted in examples."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import seeds_of, small_job, steps_to
from rightbatch.lab.samples import mean_of
from rightbatch.schedules.scaling import Rule, scaling_for

FIRST, LR, TARGET = 8, 0.05, 0.5
MOST = 1500  # updates, about three times what b = 8 takes [measured]


def run(trial: Trial) -> Seen:
    """Examples to one training loss on digits, the rate kept and the rate scaled."""
    seeds = seeds_of(trial, 2, 6)
    batches = trial.size((16, 64), (16, 32, 64, 128))

    def examples(b: int, rule: Rule, seed: int) -> float:
        lr = LR * scaling_for("sgd", FIRST, b, rule=rule).lr
        return b * steps_to(small_job(seed), TARGET, batch_size=b, lr=lr, most=MOST)

    trial.tell(f"b = {FIRST}")
    first = {seed: examples(FIRST, "none", seed) for seed in seeds}

    def over_first(b: int, rule: Rule) -> Estimate:
        trial.tell(f"b = {b}, {rule}")
        logs = [math.log(examples(b, rule, seed) / first[seed]) for seed in seeds]
        return mean_of(logs).map(math.exp)

    kept = [over_first(b, "none") for b in batches]
    scaled = [over_first(b, "linear") for b in batches]
    at = batches.index(64)
    checks = (
        equals(
            "examples to the loss at 8 times the batch, rate kept",
            8.0,
            kept[at],
            within=0.2,
            wrong={"the batch costs nothing": 1.0, "its root": math.sqrt(8)},
        ),
        at_most(
            "the same, rate scaled in proportion",
            1.5,
            scaled[at],
            wrong={"rate kept": kept[at].value},
        ),
    )
    chart = plot(
        [
            Series("rate kept", batches, kept, "points"),
            Series("as many updates", batches, [b / FIRST for b in batches], "dashed"),
            Series("rate times b / 8", batches, scaled, "points"),
            Series("as many examples", batches, [1.0] * len(batches), "line"),
        ],
        "batch size b",
        "examples to the loss, over b = 8",
        log="xy",
    )
    caption = "With the rate kept, updates are not saved: examples grow as the batch."
    caption_zh = "学习率不变时，更新次数没有减少：所需样本数与批量成正比增长。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="grow-the-rate",
    texts=("5 学习率的协同调整: raise the rate with the batch, or it is very slow",),
    papers=("Goyal et al. 2017, arXiv:1706.02677",),
    theory="far from the noise floor an update gains lr |g|^2 at any b: examples ~ b / lr",
    verdict="holds",
    seconds=4,
    power="two seeds: a factor of 1.1 is told apart, the effect is one of 8; --full has "
    "six seeds and two more batches",
    en=Words(
        title="A larger batch needs a larger rate, or training is slow",
        claimed="When the batch is enlarged the learning rate must be enlarged with it; "
        "otherwise convergence becomes very slow.",
        assumed="Slow is counted in examples or epochs, and training is still far from "
        "where noise alone stops it. Counted in updates nothing is lost.",
        seen="A net on real digits is trained to one loss. With the rate kept, as many "
        "updates are needed at the large batch, each of which reads more examples; with "
        "the rate in proportion about as many examples are needed as before.",
    ),
    zh=Words(
        title="批量变大，学习率也要变大，否则训练很慢",
        claimed="增加批量时必须同步放大学习率，否则收敛会极慢。",
        assumed="“慢”按样本数或 epoch 计；训练尚未到达只受噪声限制的阶段。按更新次数计并没有损失。",
        seen="用真实数字图像把一个小网络训练到同一损失。学习率不变时，大批量所需的更新次数"
        "几乎一样，而每次更新要读更多样本；学习率按比例放大后，所需样本数与原来相近。",
    ),
    run=run,
)
