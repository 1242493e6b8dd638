"""Top eigenvalue and trace in units of training steps: ours and the peers'.

Three small networks after some training, each over one batch. A training step is one
forward and backward pass of the same batch; figures are CPU time over the median step,
with the relative error against 400 products more. One thread. The peers are imported
where they are on the path:

    pip install -c constraints.txt --no-deps --target peers pyhessian==0.1 tqdm \
        curvlinops-for-pytorch==3.0.1 einconv einops unfoldNd backpack-for-pytorch \
        linear_operator mpmath
    PYTHONPATH=src:peers python benchmarks/sharpness.py    # some minutes
    PYTHONPATH=src python benchmarks/sharpness.py --rank   # sharpness against test loss
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import rightbatch as rb
from noise_models import Transformer
from results import write_json
from rightbatch.job.built_in.digits import load_digits
from rightbatch.landscape import sharpness
from rightbatch.landscape.hessian import hessian_of
from rightbatch.landscape.spectrum import top_eigenvalues, trace_of

PRECISION = 0.05
SEEDS, MATCHED = 4, 0.35  # and the training loss to stop at
MEASURES = ("top", "trace", "sam", "adaptive")


def mlp() -> nn.Module:
    """64-128-128-10."""
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def cnn() -> nn.Module:
    """Two convolutions and a classifier, 7,490 parameters."""
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    convolutions += [nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(24 * 16, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, *head)


class ClassesSecond(nn.Module):
    """A transformer as classifier, its attention such that every tool can take it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(128, 64, 2, 32)

    def forward(self, ids: Tensor) -> Tensor:
        """Shapes (batch, length) to (batch, classes, length)."""
        with sdpa_kernel(SDPBackend.MATH):
            return self.model(ids).movedim(-1, 1)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def job_of(make: Callable[[], nn.Module], data: Any, batch: int) -> rb.Job:
    """A job under Adam, whose data set is the batch to measure over."""
    return rb.Job(
        model=make,
        loss=loss,
        data=data,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
        batch_size=batch,
    )


def trained(job: rb.Job, steps: int) -> nn.Module:
    """The model after so many steps of 32 examples."""
    model = job.make_model()
    optimizer = job.make_optimizer(model)
    for _ in range(steps):
        indices = torch.randint(job.length, (32,))
        optimizer.zero_grad()
        loss(model, job.batch(indices, torch.device("cpu"))).backward()
        optimizer.step()
    return model


def by_ours(job: rb.Job, model: nn.Module) -> tuple[float, float]:
    """The top eigenvalue and the trace at 5 %, as `sharpness` makes them."""
    indices = torch.arange(job.length)
    with hessian_of(job, model, indices, job.length, mode="eval") as hessian:
        top = top_eigenvalues(hessian)
        trace = trace_of(hessian, top, precision=PRECISION, most=400)
    return top.eigenvalues[0].value, trace.estimate.value


def by_pyhessian(job: rb.Job, model: nn.Module) -> tuple[float, float]:
    """Its power iteration and its trace, as they stop by themselves."""
    from pyhessian import hessian  # pyrefly: ignore

    made = hessian(model, nn.CrossEntropyLoss(), job.data, cuda=False)
    top = made.eigenvalues(top_n=1)[0][0]
    return float(top), float(statistics.mean(made.trace()))


def by_curvlinops(job: rb.Job, model: nn.Module) -> tuple[float, float]:
    """Scipy's eigsh on its operator, and Hutch++ with 99 products."""
    from curvlinops import (  # pyrefly: ignore
        HessianLinearOperator,
        hutchpp_trace,
    )
    from scipy.sparse.linalg import eigsh

    params = [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, [job.data], check_deterministic=False
    )
    top = eigsh(operator.to_scipy(), k=1, which="LA", ncv=20, tol=1e-2)[0][0]
    return float(top), float(hutchpp_trace(operator, num_matvecs=99))


TOOLS = {"rightbatch": by_ours, "PyHessian": by_pyhessian, "curvlinops": by_curvlinops}


def cpu_s(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """CPU seconds, and the result."""
    started = time.process_time()
    made = work(*arguments)
    return time.process_time() - started, made


def step_s(job: rb.Job, model: nn.Module) -> float:
    """Of one forward and backward pass of the batch, the median of 15."""

    def step() -> None:
        model.zero_grad()
        loss(model, job.data).backward()

    return statistics.median(cpu_s(step)[0] for _ in range(15))


def costs() -> None:
    """Print and write the table of costs."""
    pixels, classes, *_ = load_digits()
    source = Path(F.__file__).read_bytes()[: 33 * 1000]
    rows = torch.tensor(list(source)).clamp(max=127).view(-1, 33)
    words = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    kinds: dict[str, Any] = {
        "MLP": (mlp, (pixels, classes), 512),
        "CNN": (cnn, (pixels, classes), 256),
        "transformer": (ClassesSecond, words, 32),
    }
    table: dict[str, Any] = {}
    for kind, (make, data, batch) in kinds.items():
        model = trained(job_of(make, data, batch), 200)
        job = job_of(make, tuple(t[:batch] for t in data), batch)
        step = step_s(job, model)
        with hessian_of(job, model, torch.arange(batch), batch, mode="eval") as hessian:
            top = top_eigenvalues(hessian, 3)
            truth = trace_of(hessian, top, precision=1e-3, most=400, seed=9)
        for name, tool in TOOLS.items():
            try:
                seconds, (value, trace) = cpu_s(tool, job, model)
            except ImportError:
                continue
            row = {
                "steps": round(seconds / step, 1),
                "top_error": round(value / top.eigenvalues[0].value - 1, 4),
                "trace_error": round(trace / truth.estimate.value - 1, 4),
            }
            table.setdefault(kind, {})[name] = row
            print(f"{kind:12} {name:11} {row}", flush=True)
        table[kind]["trace_known_to"] = truth.standard_error / truth.estimate.value
    write_json("sharpness", {"precision": PRECISION, "costs": table})


# Batches with their rates: today's for all, and scaled by the root or linearly.
RECIPES = (
    *((8, 0.05), (32, 0.05), (128, 0.05), (500, 0.05)),
    *((500, 0.4), (32, 0.2), (128, 0.8)),
)


def noisy_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,000 digits, one in five labels drawn at random; and the 797 others."""
    pixels, classes, held, held_classes = load_digits()
    x, y = torch.cat([pixels, held]), torch.cat([classes, held_classes])
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=random)
    chosen, others = order[:1000], order[1000:]
    wrong = torch.rand(1000, generator=random) < 0.2
    labels = torch.where(wrong, torch.randint(10, (1000,), generator=random), y[chosen])
    return x[chosen], labels, x[others], y[others]


def spearman(
    points: list[dict[str, float]],
) -> tuple[dict[str, float], dict[str, float]]:
    """With test loss, for every measure: mean within seeds; and of means over seeds."""
    within, of_means = {}, {}
    for name in MEASURES:
        table = np.array([(p[name], p["test_loss"]) for p in points])
        table = table.reshape(SEEDS, -1, 2)
        each = [float(stats.spearmanr(of_seed).statistic) for of_seed in table]
        within[name] = round(statistics.mean(each), 3)
        of_means[name] = round(float(stats.spearmanr(table.mean(0)).statistic), 3)
    return within, of_means


def rank() -> None:
    """Print and write how sharpness at matched training loss ranks test loss."""
    points: list[dict[str, float]] = []
    for seed in range(SEEDS):
        x, y, *held = noisy_digits(seed)
        for batch, rate in RECIPES:
            torch.manual_seed(seed)
            model, update = mlp(), 0
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            order = torch.randperm(1000)
            look = 50 if rate == 0.05 else 5  # faster runs pass the level sooner
            while update % look or float(loss(model, (x, y)).detach()) > MATCHED:
                if len(order) < batch:
                    order = torch.randperm(1000)
                at, order = order[:batch], order[batch:]
                optimizer.zero_grad()
                loss(model, (x[at], y[at])).backward()
                optimizer.step()
                update += 1
            point = sharpness(job_of(mlp, (x, y), batch), model, examples=1000)
            test = float(loss(model, (held[0], held[1])).detach())
            row = {"seed": seed, "batch": batch, "rate": rate}
            row |= {"updates": update, "test_loss": test}
            row |= {"loss": point.loss}
            row |= {name: getattr(point, name).value for name in MEASURES}
            points.append(row)
            print({k: round(v, 4) for k, v in row.items()}, flush=True)
    within, of_means = spearman(points)
    print("Spearman with test loss, mean of those within seeds:", within)
    print("and of the means over seeds, one for each recipe:", of_means)
    payload = {"within_seeds": within, "of_means": of_means, "points": points}
    write_json("sharpness-rank", payload)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", action="store_true")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rank() if parser.parse_args().rank else costs()


if __name__ == "__main__":
    main()
