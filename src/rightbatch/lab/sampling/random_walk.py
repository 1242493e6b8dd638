"""Training is a random walk at first, and follows its guide later."""

from __future__ import annotations

from itertools import chain, count, islice

import torch
from torch import Tensor

from rightbatch.core.estimate import Estimate
from rightbatch.data.loading.stream import BatchStream
from rightbatch.job.job import Job
from rightbatch.lab.check import at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of, slope_of
from rightbatch.lab.sampling.partly_trained import partly_trained
from rightbatch.lab.training_runs import batch_gradient, started
from rightbatch.tuning.noise_scale import noise_scale

EXAMPLES, BATCH = 256, 2
RATE = 1e-4  # so small that the gradient stays what it was along the whole path
SHORT, LONG = (1, 2, 4), (128, 256)  # steps between two looks


def walk(job: Job, steps: int, order: str) -> Tensor:
    """All weights after each step, (steps + 1, parameters), in some order of data."""
    stream = BatchStream(job.data, BATCH, seed=job.seed, order=order)
    with started(job) as run:
        flat = torch.nn.utils.parameters_to_vector
        places = [flat(run.parameters).detach().double()]
        endless = chain.from_iterable(stream.steps() for _ in count())
        for step in islice(endless, steps):
            run.accumulator(step)
            places.append(flat(run.parameters).detach().double())
    return torch.stack(places)


def mean_squared_displacement(places: Tensor, lag: int) -> Estimate:
    """Over windows of so many steps, one behind the other."""
    ends = places[::lag]
    return mean_of((ends[1:] - ends[:-1]).square().sum(1).tolist())


def displacement(lag: float, trace: float, signal: float) -> float:
    """Expected squared distance after ``lag`` independent steps of one gradient."""
    return RATE**2 * (lag * trace / BATCH + lag**2 * signal)


def exponent(lags: tuple[int, ...], values: list[float]) -> Estimate:
    """Slope of displacement over lag in double logarithms."""
    x, y = torch.tensor(lags).log2().tolist(), torch.tensor(values).log2().tolist()
    return slope_of(x, y)


def run(trial: Trial) -> Seen:
    """One path with replacement, in windows; and one shuffled epoch."""
    job = partly_trained(trial.seed, EXAMPLES, steps=60, lr=RATE)
    noise = noise_scale(job, exact=True)
    trace, signal = noise.trace.value, noise.grad_norm_sq.value
    trial.tell("with replacement")
    places = walk(job, trial.size(1024, 8192), "replacement")
    lags = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    seen = {lag: mean_squared_displacement(places, lag) for lag in lags}
    law = {lag: displacement(lag, trace, signal) for lag in lags}
    trial.tell("one epoch")
    epoch = EXAMPLES // BATCH
    shuffled = walk(job, epoch, "shuffled")
    with started(job) as state:
        whole = batch_gradient(state, torch.arange(EXAMPLES))
    astray = shuffled[-1] - shuffled[0] + epoch * RATE * whole
    noise_only = RATE**2 * trace / BATCH
    short = exponent(SHORT, [seen[lag].value for lag in SHORT])
    long = exponent(LONG, [seen[lag].value for lag in LONG])
    ahead = exponent(LONG, [law[lag] for lag in LONG]).value
    left = float(astray.square().sum()) / (noise_only * epoch)
    straight = {"a straight way": 2.0, "held in place": 0.0}
    noises = {"noise 1/sqrt(b)": BATCH**0.5, "noise 1/b^2": 1 / BATCH}
    walks, drawn = {"a random walk": 1.0}, {"independent steps": 1.0}
    of_law = seen[4].scale(1 / law[4])
    checks = (
        equals("exponent over 1, 2, 4 steps", 1.0, short, margin=0.25, wrong=straight),
        equals(
            "displacement in 4 steps over law", 1.0, of_law, within=0.3, wrong=noises
        ),
        equals("exponent over 128, 256 steps", ahead, long, margin=0.3, wrong=walks),
        at_most("noise left after an epoch", 0.02, left, wrong=drawn, part="limit"),
    )
    slope = [displacement(lag, 0.0, signal) for lag in lags]
    displaced = [
        Series("measured", lags, list(seen.values()), "points"),
        Series("law", lags, list(law.values())),
        Series("noise alone", lags, [noise_only * lag for lag in lags], "dashed"),
        Series("slope alone", lags, slope, "dashed"),
    ]
    chart = Chart(
        "Noise leads at first, the slope from the crossing on; no free number.",
        "先由噪声主导，交点之后由坡度主导；没有任何可调参数。",
        plot(displaced, "steps", "mean squared displacement", log="xy"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="random-walk",
    texts=("2 一场有引导的随机漫步: the weights during training are a guided walk",),
    papers=("McCandlish et al. 2018, arXiv:1812.06162 (the noise scale)",),
    theory="E|w_t - w_0|^2 = eta^2 (t tr Sigma/b + t^2 |G|^2): noise leads until "
    "t b = tr Sigma/|G|^2 examples",
    verdict="holds if",
    seconds=3,
    power="1,024 steps of one path: exponents to 0.2, sizes to 0.2; 8,192 with --full",
    en=Words(
        title="Training is a guided random walk",
        claimed="The weights during training move like a random walk with a guide.",
        assumed="Batches are drawn independently; the steps are so small that the "
        "gradient stays what it was.",
        seen="A real network takes tiny steps. Over few of them the squared distance "
        "grows with their number, as in a walk; over many almost with the square, as "
        "on a straight way, the guide. In a whole shuffled epoch the noise cancels.",
        answer="batches are drawn independently: the walk leads until as many examples "
        "are seen as the noise scale, then the guide",
    ),
    zh=Words(
        title="训练是有引导的随机漫步",
        claimed="训练中的权重像一场有引导的随机漫步。",
        assumed="批次独立抽取；步子极小，梯度保持不变。",
        seen="真实网络迈极小的步子。步数少时，距离平方与步数成正比，如同漫步；步数多时"
        "接近与步数平方成正比，如同沿坡度直行。打乱的完整轮次不是漫步：噪声相互抵消。",
        answer="批次独立抽取：已见样本数达到噪声尺度之前由漫步主导，此后由坡度引导",
    ),
    run=run,
)
