"""A larger batch at the same rate is slow, in proportion, counted in examples."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.small_net import log_ratio, seeds_of, small_job, steps_to
from rightbatch.schedules.scaling import Rule, scaling_for

FIRST, LR, TARGET = 8, 0.1, 0.5
MOST = 800  # updates, about three times what b = 8 takes [measured]


def examples_to_target(b: int, rule: Rule, seeds: range) -> list[float]:
    """Of the small net on the digits, the rate by a rule from that of b = 8."""
    lr = LR * scaling_for("sgd", FIRST, b, rule=rule).lr
    return [
        b * steps_to(small_job(seed), TARGET, batch_size=b, lr=lr, most=MOST)
        for seed in seeds
    ]


def run(trial: Trial) -> Seen:
    """Examples to one training loss on digits, the rate kept and the rate scaled."""
    seeds, batches = seeds_of(trial, 2, 6), trial.size((16, 64), (16, 32, 64, 128))
    first = examples_to_target(FIRST, "none", seeds)

    def over_first(rule: Rule) -> dict[int, Estimate]:
        trial.tell(rule)
        logs = {
            b: log_ratio(examples_to_target(b, rule, seeds), first) for b in batches
        }
        return {b: log.map(math.exp) for b, log in logs.items()}

    kept, scaled = over_first("none"), over_first("linear")
    free, slow = {"nothing": 1.0, "root": math.sqrt(8)}, {"rate kept": kept[64].value}
    checks = (
        equals("examples at 8 b, rate kept", 8.0, kept[64], within=0.2, wrong=free),
        at_most("examples at 8 b, rate times 8", 2.0, scaled[64], wrong=slow),
    )
    chart = plot(
        [
            Series("rate kept", batches, list(kept.values()), "points"),
            Series("as many updates", batches, [b / FIRST for b in batches], "dashed"),
            Series("rate times b / 8", batches, list(scaled.values()), "points"),
            Series("as many examples", batches, [1.0] * len(batches), "dashed"),
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
    theory="far from the noise floor an update gains lr |g|^2 at any b: examples ~ "
    "b/lr",
    verdict="holds",
    seconds=4,
    power="two seeds: a factor of 1.1, where the effect is one of 8; --full: six seeds",
    en=Words(
        title="A larger batch needs a larger rate, or training is slow",
        claimed="With the batch the rate must grow too; otherwise convergence is very "
        "slow.",
        assumed="Slow is counted in examples, far from where noise alone stops "
        "training; counted in updates nothing is lost.",
        seen="A net on real digits is trained to one loss. With the rate kept, a large "
        "batch needs as many updates, each of more examples; with the rate in "
        "proportion it needs about as many examples as before.",
    ),
    zh=Words(
        title="批量变大，学习率也要变大，否则训练很慢",
        claimed="增加批量时必须同步放大学习率，否则收敛会极慢。",
        assumed="“慢”按样本数计，且训练尚未只受噪声限制；按更新次数计并没有损失。",
        seen="用真实数字图像把小网络训练到同一损失。学习率不变时，大批量的更新次数几乎"
        "一样，每次要读更多样本；学习率按比例放大后，所需样本数与原来相近。",
    ),
    run=run,
)
