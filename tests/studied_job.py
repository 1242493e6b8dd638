"""A quick job for studies, loaded by name in workers; one of which it may kill."""

import os
import signal
from pathlib import Path

import torch

import rightbatch as rb
from cases import regression_job

EVALUATIONS: list[float] = []


def _evaluate(model: torch.nn.Module) -> float:
    """Mean square from the weights of the truth.

    The first process but the one named in the file KILL_ONE that is in the middle of a
    trial dies of it, and takes the file away.
    """
    EVALUATIONS.append(0.0)
    kill_one = Path(os.environ.get("KILL_ONE", "/nowhere"))
    killing = len(EVALUATIONS) > 4 and kill_one.exists()
    if killing and kill_one.read_text() != str(os.getpid()):
        kill_one.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    truth = torch.arange(1.0, 6.0)
    return float((next(model.parameters())[0] - truth).square().mean())


def job() -> rb.Job:
    """Regression, to a mean square of 0.1 from the truth."""
    return regression_job(evaluate=_evaluate, target=0.1, name="studied")
