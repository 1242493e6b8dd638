"""What a run was asked to do: kept in its folder, so that it can be gone on with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rightbatch.core.errors import SettingError
from rightbatch.core.json_io import (
    MISREAD,
    damaged,
    from_plain,
    read_plain,
    to_plain,
    write_json,
)
from rightbatch.core.real_number import real_number
from rightbatch.core.whole_number import keep_whole_numbers
from rightbatch.schedules.from_json import schedule_from
from rightbatch.schedules.lr_exchange import check_one_decay
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule

FORMAT = "rightbatch/run/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about a run but the job.

    Attributes:
        schedule: Batch by examples seen.
        micro_batch: Most examples in memory at once on a rank; None: the whole part.
        rule: How the learning rate follows from today's batch.
        noise_scale: For the rule.
        lr_factor: On the job's learning rates, beside the rule: a better rate found.
        exponent: For the rule.
        rate: A learning-rate decay by examples.
        end: Examples at which it stops, if the target has not been met.
        largest: Never a batch beyond.
        clip_norm: Largest norm of the gradient.
        nonfinite: ``"stop"`` or ``"skip"``.
        shard: FSDP2 instead of DDP.
        num_workers: Processes that read the data.
        ledger: Whether the run's folder proves that every example was seen once.
        coupled: Whether the examples of a micro-batch see each other: each then holds
            exactly ``micro_batch``.
        group: Examples that BatchNorm normalises together, where a micro-batch holds
            several times as many.
        multiple: What smooth schedules are rounded to; 0: micro-batch times ranks. Kept
            when a run goes on on other ranks, so that its batches are the same.
    """

    schedule: Schedule
    end: float
    micro_batch: int | None = None
    rule: str = "auto"
    noise_scale: float | None = None
    lr_factor: float = 1.0
    exponent: float | None = None
    rate: Rate | None = None
    largest: int | None = None
    clip_norm: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    shard: bool = False
    num_workers: int = 0
    ledger: bool = False
    coupled: bool = False
    group: int | None = None
    multiple: int = 0

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "micro_batch", "largest", "group")
        keep_whole_numbers(self, "num_workers", "multiple", least=0)
        for name in ("noise_scale", "clip_norm"):
            if getattr(self, name) is not None:
                real_number(getattr(self, name), name, positive=True)
        if self.exponent is not None:
            real_number(self.exponent, "exponent")
        smallest = self.schedule.start
        fixed = type(self.schedule).__name__ == "Constant"
        if fixed and self.micro_batch is not None and self.micro_batch > smallest:
            raise SettingError(
                "the micro-batch is larger than the batch",
                seen=f"micro_batch={self.micro_batch}, batch {smallest}",
                why="a micro-batch is a part of a batch",
                fix=f"micro_batch={smallest} or less",
            )
        check_one_decay(self.schedule, self.rate)
        if not self.end > 0 or math.isnan(self.end):
            raise SettingError("a run needs an end", seen=f"end={self.end}")

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return {**to_plain(fields), "schedule": self.schedule.to_plain()}

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_plain(), FORMAT)

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read what `save` wrote.

        Raises:
            RunFolderError: Missing or damaged.
        """
        plain = read_plain(path, FORMAT)
        try:
            rate = plain["rate"]
            return cls(
                **{n: plain[n] for n in {*_FIELDS} & {*plain} - {"rate", "end"}},
                end=float(plain["end"]),
                rate=None if rate is None else from_plain(Rate, rate),
                schedule=schedule_from(plain["schedule"]),
            )
        except MISREAD as error:
            raise damaged(path, error) from error


_FIELDS = tuple(n for n in Settings.__dataclass_fields__ if n != "schedule")
