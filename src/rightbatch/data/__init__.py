"""Which examples come next, and how they reach the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.data.loading.batch_sampler import BatchSampler
    from rightbatch.data.loading.ledger import Ledger
    from rightbatch.data.loading.shard_stream import ShardStream
    from rightbatch.data.loading.step import MicroBatch, Step
    from rightbatch.data.order.distinct import Distinct
    from rightbatch.data.order.neyman import StratumMeter
    from rightbatch.data.order.pairs import Pairs
    from rightbatch.data.order.strata import Strata
    from rightbatch.data.order.tokens import Tokens
    from rightbatch.data.order.weighted import Weighted

__all__ = [
    "BatchSampler",
    "Distinct",
    "Ledger",
    "MicroBatch",
    "Pairs",
    "ShardStream",
    "Step",
    "Strata",
    "StratumMeter",
    "Tokens",
    "Weighted",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "data.loading.batch_sampler": ("BatchSampler",),
        "data.loading.ledger": ("Ledger",),
        "data.loading.shard_stream": ("ShardStream",),
        "data.loading.step": (
            "MicroBatch",
            "Step",
        ),
        "data.order.distinct": ("Distinct",),
        "data.order.neyman": ("StratumMeter",),
        "data.order.pairs": ("Pairs",),
        "data.order.strata": ("Strata",),
        "data.order.tokens": ("Tokens",),
        "data.order.weighted": ("Weighted",),
    },
)
