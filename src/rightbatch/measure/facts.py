"""What a job is, as plain values that JSON can hold."""

from __future__ import annotations

from torch import nn

from rightbatch.core.findings import Coupled
from rightbatch.coupling.synchronized_norm import SyncBatchNorm
from rightbatch.job.optimizers import check_rates, kinds_of
from rightbatch.job.several_optimizers import optimizer_name
from rightbatch.measure.measurements import JobFacts
from rightbatch.training.run_state import RunState


def job_facts(run: RunState, spec: str, coupled: Coupled = "") -> JobFacts:
    """Read the facts off a fresh run of the job.

    Args:
        run: Fresh.
        spec: How the job is loaded; "": by its name.
        coupled: Where the examples of a batch touch each other.

    Raises:
        SettingError: The optimizer has no learning rate.
    """
    check_rates(run.optimizer, "rates are told and raced by the factor on all of them")
    job, group, kind = (
        run.job,
        run.optimizer.param_groups[0],
        kinds_of(run.optimizer)[0],
    )
    momentum, betas = group.get("momentum"), group.get("betas")
    return JobFacts(
        name=job.name,
        spec=spec or job.name,
        example=job.example,
        examples=job.length,
        parameters=sum(p.numel() for p in run.network.parameters()),
        optimizer=optimizer_name(run.optimizer),
        family=kind.family,
        decoupled_decay=kind.decoupled,
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
        grouped=run.grouped is not None,
    )


def _coupled_batch(run: RunState) -> int:
    """Examples that see each other at today's batch size."""
    shared = any(
        isinstance(m, nn.SyncBatchNorm | SyncBatchNorm) for m in run.network.modules()
    )
    return -(-run.job.batch_size // (1 if shared else run.ranks.size))
