"""Everything that may race: batches in powers of two, rates by half powers of two."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch.measure.measurements import Measurements
from rightbatch.plan.choice import scaling_of
from rightbatch.plan.laws import Laws
from rightbatch.plan.options import Option
from rightbatch.tuning.lane import Setting

# Rates from today's over 2^8 to times 2^8, so that one 16 x off either way has the best
# well inside, two to an octave: closer ones cannot be told apart. [assumed]
OCTAVES, PER_OCTAVE = 8, 2


def race_settings(
    measurements: Measurements, laws: Laws, options: Sequence[Option]
) -> tuple[Setting, ...]:
    """Today's setting, then every option's batch at every rate.

    Args:
        measurements: Of the job.
        laws: Fitted to them.
        options: The batches that fit.
    """
    job = measurements.job
    splits = {o.batch_size: o.micro_batch for o in options}
    split = laws.split(job.batch_size, None)
    assert split is not None, "without a limit every batch has a split"
    splits.setdefault(job.batch_size, split[0])

    def setting(batch_size: int, lr: float) -> Setting:
        return setting_at(measurements, laws, batch_size, splits[batch_size], lr)

    reach = OCTAVES * PER_OCTAVE
    rates = [job.lr * 2 ** (i / PER_OCTAVE) for i in range(-reach, reach + 1)]
    others = [setting(b, lr) for b in splits for lr in rates]
    today = (job.batch_size, job.lr)
    return (setting(*today), *(s for s in others if (s.batch_size, s.lr) != today))


def setting_at(
    measurements: Measurements,
    laws: Laws,
    batch_size: int,
    micro_batch: int,
    lr: float,
) -> Setting:
    """What a candidate of this batch and rate trains with.

    Args:
        measurements: Of the job.
        laws: Fitted to them.
        batch_size: Examples per step.
        micro_batch: Examples in memory at once, over all ranks.
        lr: Learning rate of the first param group.
    """
    scaling = scaling_of(measurements, laws, batch_size)
    return Setting(
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        lr_factor=lr / (measurements.job.lr * scaling.lr),
        scaling=scaling,
        step_s=laws.time.step_seconds(micro_batch, batch_size // micro_batch),
        stretch=laws.rate.prior.stretch(batch_size),
    )
