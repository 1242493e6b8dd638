"""The weights decide how large a batch is useful, not how many examples there are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.generalisation.ratio import ratio
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import digits_job, started
from rightbatch.tuning.noise_scale import noise_scale

FEW, MANY = 256, 1024  # new examples to fine-tune on
BEFORE, UPDATES = 384, 60  # other examples and updates of the training before


def run(trial: Trial) -> Seen:
    """Exact noise scales of new data sets, from scratch and after training."""
    seeds = range(trial.seed * 100, trial.seed * 100 + trial.size(6, 12))
    sizes = trial.size((FEW, MANY), (128, FEW, 512, MANY))
    scratch: dict[int, list[float]] = {size: [] for size in sizes}
    trained: dict[int, list[float]] = {size: [] for size in sizes}
    for seed in seeds:
        whole = digits_job(seed=seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(whole.length, generator=generator)

        def data(rows: Tensor, tensors: tuple[Tensor, ...] = whole.data) -> object:
            return tuple(t[rows] for t in tensors)

        job = digits_job(seed=seed, data=data(order[:BEFORE]))
        with started(job) as state:
            for noises, updates in ((scratch, 0), (trained, UPDATES)):
                while state.steps < updates:
                    state.step()
                for size in sizes:
                    trial.tell(f"split {seed}, after {updates} updates, N = {size}")
                    new = digits_job(data=data(order[BEFORE:][:size]))
                    noise = noise_scale(new, at=state.network, exact=True)
                    noises[size].append(noise.noise_scale.value)

    by_size = ratio(trained[MANY], trained[FEW])
    by_weights = ratio(scratch[MANY], trained[MANY])
    checks = (
        at_least(
            f"noise scale of {MANY} examples over that of {FEW}, same weights",
            2.0,
            by_size,
            wrong={"no influence": 1.0},
        ),
        equals(
            f"noise scale of {MANY} examples over that of {FEW}, same weights",
            1.0,
            by_size,
            margin=0.3,
            part="correction",
            wrong={"as N": MANY / FEW, "as sqrt(N)": math.sqrt(MANY / FEW)},
        ),
        at_least(
            f"noise scale from scratch over that after training, N = {MANY}",
            2.0,
            by_weights,
            part="correction",
            wrong={"weights that do not matter": 1.0},
        ),
    )
    chart = plot(
        [
            Series(
                "from scratch", sizes, [mean_of(scratch[n]) for n in sizes], "points"
            ),
            Series(
                "after training", sizes, [mean_of(trained[n]) for n in sizes], "points"
            ),
            Series("N itself", sizes, sizes, "dashed"),
        ],
        "examples N to fine-tune on",
        "noise scale (examples)",
        log="xy",
    )
    return Seen(checks, (Chart(CAPTION, CAPTION_ZH, chart),))


CAPTION = (
    "Four times the data hardly moves the noise scale; other weights move it several "
    "times over."
)
CAPTION_ZH = "数据多四倍，噪声尺度几乎不变；换一组权重，它却相差数倍。"
CLAIM = Claim(
    id="data-size",
    texts=("5 总结与建议: 预训练数据多，用大批次；微调数据有限，用中小批次",),
    papers=("McCandlish et al. 2018, arXiv:1812.06162",),
    theory="B_noise = tr Sigma / |G|^2: means over examples, without N",
    verdict="fails as written",
    seconds=15,
    power="6 splits of the digits: a noise scale in proportion to sqrt(N) or N is told "
    "from a constant one; 12 splits and four sizes with --full",
    en=Words(
        title="Large batches for much data, small ones for little",
        claimed="Pre-training has much data and should take large batches; fine-tuning "
        "has little and should take small ones.",
        assumed="The useful batch follows the noise scale: the variance of one "
        "example's gradient over the squared mean gradient, at the weights of now. "
        "Both are means over examples, so their number is not in it.",
        seen="A net is trained for a while on some digits. Then the exact noise scale "
        "of new sets of digits is made at its weights, and at those it began with: "
        "it changes with the weights, and hardly with the number of examples.",
        answer="the noise scale at the weights decides, which must be measured; the "
        "number of examples is only a ceiling. Whether noise prevents overfitting is "
        "another question, not asked here",
    ),
    zh=Words(
        title="数据多用大批量，数据少用小批量",
        claimed="预训练数据多，应当用大批量；微调数据少，应当用中小批量。",
        assumed="有用的批量取决于噪声尺度：当前权重下，单个样本梯度的方差除以"
        "平均梯度的平方。两者都是对样本的平均，与样本总数无关。",
        seen="先在一部分数字图像上训练一会儿，再在新的图像集上，于这组权重和初始权重"
        "处算出精确的噪声尺度：它随权重改变，几乎不随样本数改变。",
        answer="起决定作用的是当前权重下的噪声尺度，需要测量；样本数只是上限。"
        "噪声能否防止过拟合是另一个问题，这里没有检验",
    ),
    run=run,
)
