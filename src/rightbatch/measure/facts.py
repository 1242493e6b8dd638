"""What a job is, as plain values that JSON can hold."""

from __future__ import annotations

from rightbatch.job.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.measure.measurements import JobFacts
from rightbatch.training.run_state import RunState


def job_facts(run: RunState, spec: str) -> JobFacts:
    """Read the facts off a fresh run of the job."""
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
    )
