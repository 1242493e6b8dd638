"""Everything that moves in a run, and its state: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.data.loading.stream import BatchStream
from rightbatch.job.job import Job
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.training.accumulator import Accumulator
from rightbatch.training.controller import Controller
from rightbatch.training.ranks import Ranks
from rightbatch.training.recovery import random_state, set_random_state
from rightbatch.training.run_folder import LEDGER
from rightbatch.training.settings import Settings

# Share of the time for the noise that a live schedule follows: more than to watch it,
# since short runs would otherwise end before it is known. [assumed]
OVERHEAD, LOAN = 0.05, 40
STRIDE = 7919  # between the seeds of ranks: a prime, so that steps do not meet it


@dataclass
class Runner:
    """A run: its parts, each with a state of its own, and how far it has come.

    Attributes:
        job: What is trained.
        model: As the loop calls it: wrapped for several ranks.
        bare: The job's own network.
        steps: Updates made or skipped.
        examples: Examples seen.
        due: Examples at the next evaluation.
        time_s: Wall seconds of training so far.
        process_time_s: CPU seconds of this process so far.
        events: What has happened since the last row of the trace.
        stream_before: State of the stream before the present step.
        reached: Whether the target has been met.
        skipped: Batches left out in a row, up to now.
        facts: What a checkpoint must share with this run to be gone on from.
    """

    job: Job
    model: nn.Module
    bare: nn.Module
    optimizer: torch.optim.Optimizer
    stream: BatchStream
    accumulator: Accumulator
    controller: Controller
    monitor: NoiseMonitor | None
    ranks: Ranks
    steps: int = 0
    examples: int = 0
    due: int = 0
    time_s: float = 0.0
    process_time_s: float = 0.0
    events: list[str] = field(default_factory=list)
    stream_before: dict[str, Any] | None = None
    reached: bool = False
    skipped: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, job: Job, settings: Settings, folder: Path | None = None) -> Runner:
        """A fresh run at the job's initial weights, on every rank.

        Args:
            job: What is trained.
            settings: How.
            folder: Of the run, for its ledger.

        Raises:
            JobError: Model, data or optimizer cannot be made.
            SettingError: The schedule or a setting cannot be run; ranks do not agree.
        """
        job = _placed(job)
        torch.manual_seed(job.seed)
        bare = job.make_model()
        model = wrapped(job, bare, shard=settings.shard)
        ranks = Ranks(model)
        # Sharded parameters are other tensors, so only now.
        optimizer = job.make_optimizer(model)
        known = facts(job, bare, optimizer)
        _agree(ranks, known, settings)
        # Other ranks draw other numbers; the first those of a run on one.
        _seed(job.seed + STRIDE * ranks.rank)
        schedule = settings.schedule
        micro = settings.micro_batch
        stream = BatchStream(
            job.data,
            schedule.start,
            seed=job.seed,
            micro_batch=micro,
            tail="carry",
            rank=ranks.rank,
            world_size=ranks.size,
            collate_fn=job.collate,
            num_workers=settings.num_workers,
            ledger=folder / LEDGER if settings.ledger and folder else None,
        )
        live = schedule.live
        monitor = None
        if live:
            monitor = NoiseMonitor(
                model, optimizer, OVERHEAD, stream=stream, upfront=LOAN
            )
        controller = Controller(
            schedule,
            optimizer,
            job.batch_size,
            stream=stream,
            monitor=monitor,
            rule=settings.rule,
            noise_scale=settings.noise_scale,
            exponent=settings.exponent,
            rate=settings.rate,
            largest=min(job.length, settings.largest or job.length),
            multiple=settings.multiple or (micro or 1) * ranks.size,
            model=model,
        )
        accumulator = Accumulator(
            model,
            job.loss,
            optimizer,
            micro,
            precision=job.precision,
            clip_norm=settings.clip_norm,
            nonfinite=settings.nonfinite,
        )
        run = cls(
            job,
            model,
            bare,
            optimizer,
            stream,
            accumulator,
            controller,
            monitor,
            ranks,
        )
        accumulator.tell = run.tell
        run.facts = known
        return run

    def tell(self, text: str) -> None:
        """Note for the trace what was decided or has happened."""
        self.events.append(f"step {self.steps}: {text}")

    @property
    def device(self) -> torch.device:
        """Of the model's parameters."""
        return self.accumulator.device

    def evaluated(self) -> float | None:
        """The job's ``evaluate``, alike on all ranks; None where it has none."""
        if self.job.evaluate is None:
            return None
        with preserved_rng():  # how often it is asked must not change the run
            if self.ranks.sharded:  # each part of the model is needed
                return self.ranks.from_first(self.job.evaluated(self.model))
            own = self.job.evaluated(self.bare) if self.ranks.rank == 0 else None
            return self.ranks.from_first(own)

    def state(self, stream: dict[str, Any] | None = None) -> dict[str, Any]:
        """Everything a checkpoint needs. Collective.

        Args:
            stream: State of the stream to save, if not the present one.
        """
        model, optimizer = self._weights()
        return {
            "job": self.facts,
            "reached": self.reached,
            "world_size": self.ranks.size,
            "sharded": self.ranks.sharded,
            "model": model,
            # Not part of a state dict, but of the model.
            "buffers": dict(self.bare.named_buffers()),
            "optimizer": optimizer,
            "stream": self.stream.state_dict() if stream is None else stream,
            "controller": self.controller.state_dict(),
            "accumulator": self.accumulator.state_dict(),
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "random": self.ranks.gather_objects(_packed(random_state(self.device))),
            "steps": self.steps,
            "examples": self.examples,
            "due": self.due,
            "time_s": self.time_s,
            "process_time_s": self.process_time_s,
            "events": list(self.events),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on any number of ranks. Collective.

        Raises:
            SettingError: It is the state of another job; nothing has changed.
        """
        check_same(state["job"], self.facts)
        self.reached = state["reached"]
        self._set_weights(state)
        with torch.no_grad():
            for name, buffer in self.bare.named_buffers():
                if name in state["buffers"]:
                    buffer.copy_(state["buffers"][name])
        self.stream.load_state_dict(state["stream"])
        self.controller.load_state_dict(state["controller"])
        self.accumulator.load_state_dict(state["accumulator"])
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.load_state_dict(state["monitor"])
        saved = state["random"]
        if self.ranks.rank < len(saved) and state["world_size"] == self.ranks.size:
            set_random_state(_unpacked(saved[self.ranks.rank]), self.device)
        else:  # another number of ranks: numbers that no rank has drawn yet
            _seed(self.job.seed + STRIDE * self.ranks.rank + state["steps"])
        self.steps, self.examples = state["steps"], state["examples"]
        self.due, self.time_s = state["due"], state["time_s"]
        self.process_time_s = state["process_time_s"]
        self.events = list(state["events"])

    def close(self) -> None:
        """Stop workers and take hooks away."""
        self.stream.close()
        if self.monitor is not None:
            self.monitor.close()

    def _weights(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self.ranks.sharded:
            return self.bare.state_dict(), self.optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model = get_model_state_dict(self.model, options=options)
        # Asked before the first update, torch makes one, which Adam then counts.
        optimizer: dict[str, Any] = {}
        if self.optimizer.state:
            optimizer = get_optimizer_state_dict(
                self.model, self.optimizer, options=options
            )
        return model, optimizer

    def _set_weights(self, state: dict[str, Any]) -> None:
        if state["sharded"] != self.ranks.sharded:
            raise SettingError(
                "the checkpoint is of a run that was "
                + ("sharded" if state["sharded"] else "not sharded"),
                seen=f"shard={self.ranks.sharded} now",
                why="the optimizer's state is stored in another way",
                fix=f"shard={state['sharded']}",
            )
        if not self.ranks.sharded:
            self.bare.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            return
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, state["model"], options=options)
        if state["optimizer"]:
            set_optimizer_state_dict(
                self.model, self.optimizer, state["optimizer"], options=options
            )


def wrapped(job: Job, model: nn.Module, *, shard: bool) -> nn.Module:
    """The model as several ranks train it: DDP, or sharded by FSDP2.

    Sharded are the repeated blocks (members of a ``ModuleList`` or ``Sequential``), and
    what is left as a whole.
    """
    if not torch.distributed.is_initialized():
        if shard:
            raise SettingError(
                "shard needs several processes",
                fix="torchrun --nproc-per-node 2 -m rightbatch train ... --shard",
            )
        return model
    if shard:
        from torch.distributed.fsdp import fully_shard

        for module in list(model.modules()):
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                for block in module:
                    if any(True for _ in block.parameters()):
                        fully_shard(block)
        fully_shard(model)
        return model
    unused = _unused(job, model)
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)


def _unused(job: Job, model: nn.Module) -> bool:
    """Whether a pass leaves trainable parameters without a gradient: DDP must know."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    with preserved_rng():
        indices = torch.arange(min(2, job.length))
        device = next(model.parameters()).device
        value, _ = job.mean_loss(model, job.batch(indices, device))
        if value.requires_grad:
            value.backward()
    missing = any(p.requires_grad and p.grad is None for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, copy in buffers:
            buffer.copy_(copy)
    return missing


def facts(
    job: Job, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this job's."""
    return {
        "examples": job.length,
        "batch_size": job.batch_size,
        "seed": job.seed,
        "precision": job.precision,
        "parameters": [
            f"{name} {'x'.join(str(n) for n in p.shape)}"
            for name, p in model.named_parameters()
        ],
        "optimizer": type(optimizer).__name__,
        "param groups": [
            {"tensors": len(group["params"]), **_numbers(group)}
            for group in optimizer.param_groups
        ],
    }


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Its learning rate, betas and the like, as lists where they are tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key != "params" and isinstance(value, (int, float, str, bool, tuple))
    }


def check_same(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse the checkpoint of another job.

    Raises:
        SettingError: It says what differs.
    """
    for key, value in own.items():
        if saved.get(key) == value:
            continue
        then, now = _told(key, saved.get(key), value)
        raise SettingError(
            f"the checkpoint is of another job: its {key} differ",
            seen=f"{then} then, {now} now",
            why="going on from it would be neither run",
            fix="the job as it was, or another --out for a new run",
        )


def _told(key: str, then: Any, now: Any) -> tuple[str, str]:
    """What differs, in few words."""
    if key == "parameters":
        odd = sorted(set(then or []) ^ set(now))
        return f"{len(then or [])} tensors", f"{len(now)}; {odd[:2]}"
    if key == "param groups" and then and len(then) == len(now):
        for a, b in zip(then, now, strict=True):
            for name in {**a, **b}:
                if a.get(name) != b.get(name):
                    return f"{name} {a.get(name)}", f"{name} {b.get(name)}"
    return str(then), str(now)


def _placed(job: Job) -> Job:
    """Each rank on a device of its own, where there are devices."""
    local = os.environ.get("LOCAL_RANK")
    wanted = None if job.device is None else torch.device(job.device).type
    if (
        torch.distributed.is_initialized()
        and local is not None
        and torch.cuda.is_available()
        and wanted in (None, "cuda")
    ):
        return dataclasses.replace(job, device=f"cuda:{local}")
    return job


def _agree(ranks: Ranks, known: dict[str, Any], settings: Settings) -> None:
    """The same job and settings on every rank; DDP copies the weights."""
    own = known | {"settings": str(settings.to_plain())}
    ranks.agree("the job", own, "start every rank with the same command and files")


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def _packed(state: dict[str, Any]) -> dict[str, Any]:
    """Random states as plain values and tensors."""
    kind, keys, *rest = state["numpy"]
    packed = {**state, "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}
    version, numbers, gauss = state["python"]
    packed["python"] = [version, list(numbers), gauss]
    return packed


def _unpacked(state: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *rest = state["numpy"]
    version, numbers, gauss = state["python"]
    numpy = (kind, keys.numpy().astype(np.uint32), *rest)
    return {**state, "numpy": numpy, "python": (version, tuple(numbers), gauss)}
