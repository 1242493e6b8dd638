"""A Trainer on two ranks whose batch grows from 8 to 16; writes what it saw."""

import json
import math
from pathlib import Path

import rightbatch as rb
from rightbatch.integrations.transformers import Callback
from trainers import Texts, trainer


def main() -> None:
    run = trainer(Path("out"), data=Texts(128, ragged=True), ddp_backend="gloo")
    Callback(None, rb.schedules.Stages(((0, 8), (64, 16)))).attach(run)
    run.train()

    plain = trainer(Path("out"), kind=None, max_steps=12, ddp_backend="gloo")
    watched = Callback().attach(plain)
    plain.train()
    if run.is_world_process_zero():
        assert watched.monitor is not None
        noise = watched.monitor.counts.measured
        seen = {"counts": run.counts, "off": run.off, "noise": noise}
        Path("seen.json").write_text(json.dumps(seen))
        assert math.isfinite(plain.state.log_history[-1]["noise/trace"])


if __name__ == "__main__":
    main()
