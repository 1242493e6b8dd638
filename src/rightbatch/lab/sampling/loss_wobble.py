"""The loss of mini-batch training wobbles, less at larger batches."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of, slope_of
from rightbatch.lab.training_runs import digits_job, trained

BATCHES = (4, 16, 64, 256)
RATE, MUCH = 0.1, 4.0  # of plain SGD: a small one, and one too large for b = N


def run(trial: Trial) -> Seen:
    """Training losses of every batch size, against those of the whole data set."""
    steps = trial.size(80, 400)
    job = digits_job(
        seed=trial.seed, optimizer=lambda params: torch.optim.SGD(params, lr=RATE)
    )
    pixels, classes = job.data
    n = job.length

    def spread(model: nn.Module) -> float:
        """Variance of one example's loss over the training data."""
        losses = F.cross_entropy(model(pixels), classes, reduction="none")
        return float(losses.var(correction=0))

    trial.tell("b = N")
    whole = trained(job, batch_size=n, lr=RATE, steps=steps, look=spread)
    curves = {}
    for b in BATCHES:
        trial.tell(f"b = {b}")
        curves[b] = trained(job, batch_size=b, lr=RATE, steps=steps, every=steps + 1)
    much = trained(job, batch_size=n, lr=MUCH, steps=12, every=99)
    off = {b: np.subtract(c.losses, whole.losses) for b, c in curves.items()}
    sizes = {b: np.abs(np.diff(d)) for b, d in off.items()}
    for b in BATCHES:
        v=np.array(whole.values)[:-1]
        print(b, off[b].std(), (off[b][1:]**2/v).mean()*b*(n-1)/(n-b), (np.diff(off[b])**2/2/np.array(whole.values)[:-1]).mean()*b*(n-1)/(n-b), (np.diff(curves[b].losses)>0).mean())
    print(whole.losses[::10], (np.diff(whole.losses)>0).mean(), much.losses, {b: c.losses[-1] for b,c in curves.items()})
    return Seen((), ())
