"""A minimum of the whole loss that is none of a mini-batch's is left."""

from __future__ import annotations

import itertools

import numpy as np

from rightbatch.data.order.draws import Replacement, Shuffled
from rightbatch.data.order.order import Cursor
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.physics.chains import Array, walk
from rightbatch.lab.physics.wells import DoubleWell, shares_along
from rightbatch.lab.plots import Series, plot

WELL = DoubleWell(0.3)
LR, PULL = 0.05, 3.0  # L1 and L2 are the loss plus and minus PULL w
STEPS = 3000


def drawn(order: Shuffled, chains: int, seed: int) -> Array:
    """Which loss each chain sees at each step (steps, chains), as +1 and -1.

    Every chain reads its own stretch of one long stream of two examples.
    """
    many = chains * STEPS
    cut, _ = order.cut(seed, Cursor(), many, stop=many)
    return 1.0 - 2.0 * cut.indices.reshape(chains, STEPS).T


def paths(signs: Array) -> Array:
    """Where the chains are after each step, from the worse minimum of the sum."""
    pulls = iter(signs)
    chains = walk(
        np.full(signs.shape[1], WELL.places[2]),
        WELL.slope,
        LR,
        lambda at: PULL * next(pulls),
    )
    return np.array([at.copy() for at in itertools.islice(chains, STEPS)])


def run(trial: Trial) -> Seen:
    """One of two losses a step, drawn anew or by epochs, against both at once."""
    _, saddle, right = WELL.places
    trial.tell("drawn anew")
    signs = drawn(Replacement(2), trial.size(1000, 8000), trial.seed)
    anew = paths(signs)
    trial.tell("by epochs")
    epochs = paths(drawn(Shuffled(2), trial.size(8, 30), trial.seed))
    whole = paths(np.zeros((STEPS, 1)))
    over = [(p < saddle).mean(1) for p in (anew, epochs, whole)]
    heat = LR * PULL**2 / 2
    law = shares_along(WELL, np.full(STEPS, heat), LR)
    second = signs[0] < 0
    checks = (
        equals(
            "first step of chains that draw L2",
            LR * PULL,
            float(anew[0][second].mean() - right),
            margin=1e-9,
            wrong={"the gradient of the sum": 0.0},
        ),
        at_least(
            "share of chains beyond the saddle in the end, drawn anew",
            0.8,
            float(over[0][-1]),
            wrong={"full batch": float(over[2].max())},
        ),
        at_most(
            "share ever beyond the saddle, each loss once an epoch",
            0.05,
            float((epochs < saddle).any(0).mean()),
            part="limit",
            wrong={"drawn anew": float((anew < saddle).any(0).mean())},
        ),
    )
    print(
        [str(c.measured) for c in checks],
        law[[300, 1000, 2999]],
        over[0][[300, 1000, 2999]],
    )
