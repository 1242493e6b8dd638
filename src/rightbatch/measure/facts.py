"""What a job is, as plain values that JSON can hold."""

from __future__ import annotations

from torch import nn

from rightbatch.core.findings import Coupled
from rightbatch.job.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.measure.measurements import JobFacts
from rightbatch.training.run_state import RunState


def job_facts(run: RunState, spec: str, coupled: Coupled = "") -> JobFacts:
    """Read the facts off a fresh run of the job.

    Args:
        run: Fresh.
        spec: How the job is loaded; "": by its name.
        coupled: Where the examples of a batch touch each other.
    """
    job, group = run.job, run.optimizer.param_groups[0]
    momentum, betas = group.get("momentum"), group.get("betas")
    return JobFacts(
        name=job.name,
        spec=spec or job.name,
        example=job.example,
        examples=job.length,
        parameters=sum(p.numel() for p in run.network.parameters()),
        optimizer=type(run.optimizer).__name__,
        family=optimizer_family(run.optimizer),
        decoupled_decay=decay_is_decoupled(run.optimizer),
        lr=float(group["lr"]),
        momentum=float(momentum) if momentum is not None else None,
        betas=tuple(float(b) for b in betas) if betas else None,
        weight_decay=float(group.get("weight_decay", 0.0)),
        batch_size=job.batch_size,
        has_evaluate=job.evaluate is not None,
        target=float(job.target) if job.target is not None else None,
        goal=job.goal,
        precision=job.precision,
        seed=job.seed,
        run_examples=job.run_examples,
        rate="" if run.rate is None else str(run.rate),
        clip_norm=job.clip_norm,
        coupled=coupled,
        coupled_batch=_coupled_batch(run) if coupled else None,
    )


def _coupled_batch(run: RunState) -> int:
    """Examples that see each other at today's batch size."""
    shared = any(isinstance(m, nn.SyncBatchNorm) for m in run.network.modules())
    return -(-run.job.batch_size // (1 if shared else run.ranks.size))
