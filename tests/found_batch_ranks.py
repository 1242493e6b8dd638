"""Two ranks by gloo that would begin otherwise; memory runs out on the second one."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.tuning.find_batch_size import find_batch_size


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    calls: list[list[int]] = []

    def training(micro_batch: int, accumulation: int) -> None:
        calls.append([micro_batch, accumulation])
        if micro_batch > 4 and rank == 1:
            raise torch.OutOfMemoryError("emulated")

    fix = ""
    for start in ((16, 8)[rank], 4):  # the second one as the error says
        try:
            find_batch_size(32, starting_micro_batch=start)(training)()
        except SettingError as error:
            fix = error.fix
    Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps([calls, fix]))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
