"""What measuring the gradient's noise costs: ours and the peers', in one run.

Every method makes one forward and backward pass of the same batch. Methods take turns;
a method's figure is the median over the rounds of its CPU time over the plain pass of
the same round, with quartiles. Memory is the high-water mark of a process of its own,
above what model and data take. One thread.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt -e . -r benchmarks/peers.txt
    .venv-peers/bin/pip install --no-deps backpack-for-pytorch==1.7.1  # no torchvision
    .venv-peers/bin/python benchmarks/noise_cost.py            # some minutes
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import rightbatch as rb
from noise_models import Case, cases
from results import write_json

ACCUMULATION = 4
Step = Callable[[], Any]


class Still(torch.optim.Optimizer):
    """An optimizer that leaves everything as it is: only the passes are timed."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def plain(case: Case, model: nn.Module, accumulation: int = 1) -> Step:
    """Forward and backward."""
    optimizer = Still(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        x, y = case.inputs.chunk(accumulation), case.targets.chunk(accumulation)
        for one, target in zip(x, y, strict=True):
            (case.loss(model, one, target) / accumulation).backward()
        optimizer.step()

    return step


def ours(case: Case, model: nn.Module, groups: Any, accumulation: int = 1) -> Step:
    """The same with a monitor that measures every step."""
    step = plain(case, model, accumulation)
    monitor = rb.NoiseMonitor(model, overhead=math.inf, groups=groups)

    def watched() -> Any:
        step()
        return monitor

    return watched


def by_loop(case: Case, model: nn.Module) -> Step:
    """One example at a time."""

    def step() -> list[float]:
        norms = []
        for x, y in zip(case.inputs, case.targets, strict=True):
            model.zero_grad()
            case.loss(model, x[None], y[None]).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(sum(float(g.square().sum()) for g in grads))
        return norms

    return step


def by_vmap(case: Case, model: nn.Module) -> Step:
    """Every example's gradient at once."""
    values = {n: p.detach() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def alone(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def called(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, (values, buffers), args, kwargs)

        return case.loss(called, x[None], y[None])

    each = vmap(grad(alone), (None, 0, 0), randomness="different")

    def step() -> Tensor:
        made = each(values, case.inputs, case.targets)
        sums = {n: g.sum(0) for n, g in made.items()}
        assert sums
        return torch.stack([g.flatten(1).square().sum(1) for g in made.values()]).sum(0)

    return step


def by_backpack(case: Case, model: nn.Module) -> Step:
    """BackPACK's BatchL2Grad."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    extended = extend(copy.deepcopy(model))
    loss = extend(nn.CrossEntropyLoss())

    def step() -> Tensor:
        extended.zero_grad()
        value = loss(extended(case.inputs).flatten(0, -2), case.targets.flatten())
        with backpack(BatchL2Grad()):
            value.backward()
        norms = [p.batch_l2 for p in extended.parameters()]
        return torch.stack(norms).sum(0) * len(case.inputs) ** 2

    return step


def by_opacus(case: Case, model: nn.Module, ghost: bool) -> Step:
    """Opacus: ghost norms, or per-sample gradients."""
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    inner = copy.deepcopy(model)
    wrapped: Any = (
        GradSampleModuleFastGradientClipping(
            inner, max_grad_norm=1.0, use_ghost_clipping=True
        )
        if ghost
        else GradSampleModule(inner)
    )
    wrapped.train()

    def step() -> Tensor:
        wrapped.zero_grad()
        case.loss(wrapped, case.inputs, case.targets).backward()
        if ghost:
            return wrapped.get_norm_sample().square()
        owners: list[Any] = list(inner.parameters())
        norms = torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in owners])
        for p in owners:
            p.grad_sample = None
        return norms.sum(0)

    return step


METHODS: dict[str, Callable[[Case, nn.Module], Step]] = {
    "plain": plain,
    "ours, 8 groups": lambda c, m: ours(c, m, 8),
    "ours, per example": lambda c, m: ours(c, m, "examples"),
    "BackPACK BatchL2Grad": by_backpack,
    "Opacus ghost": lambda c, m: by_opacus(c, m, True),
    "Opacus per sample": lambda c, m: by_opacus(c, m, False),
    "vmap(grad)": by_vmap,
    "loop over examples": by_loop,
    "plain, accumulated": lambda c, m: plain(c, m, ACCUMULATION),
    "ours, accumulated": lambda c, m: ours(c, m, 8, ACCUMULATION),
}
BASE = {"ours, accumulated": "plain, accumulated"}


def times(case: Case, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians and quartiles of each method over its base, in turns."""
    torch.manual_seed(0)
    model = case.model()
    steps: dict[str, Step] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in METHODS.items():
        try:
            step = make(case, copy.deepcopy(model))
            for _ in range(4):
                step()
            steps[name] = step
        except Exception as error:
            found[name] = {"fails": f"{type(error).__name__}: {str(error)[:60]}"}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    shuffler = random.Random(0)
    slow = {n for n, step in steps.items() if _once(step) > 5 * _once(steps["plain"])}
    for turn in range(rounds):
        order = [n for n in steps if turn % 4 == 0 or n not in slow]
        shuffler.shuffle(order)
        for name in order:
            _once(steps[name])  # memory and caches are as this method leaves them
            taken[name].append(_once(steps[name]))
        for name in set(steps) - set(order):
            taken[name].append(math.nan)
    for name, own in taken.items():
        base = taken[BASE.get(name, "plain")]
        ratios = [a / b for a, b in zip(own, base, strict=True) if a == a and b == b]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {"ratio": middle, "quartiles": [low, high]}
        found[name]["ms"] = statistics.median([t for t in own if t == t]) * 1e3
    return found


def _once(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def amortised(case: Case, steps: int) -> dict[str, float]:
    """The monitor as it comes, over a run, against the same run without it."""
    torch.manual_seed(0)
    model = case.model()
    without = plain(case, copy.deepcopy(model))
    watched_model = copy.deepcopy(model)
    spent = [0.0, 0.0]
    started = 0.0

    def own_clock() -> float:
        return spent[1] + time.process_time() - started

    step = plain(case, watched_model)
    monitor = rb.NoiseMonitor(watched_model, clock=own_clock)
    without()
    for _ in range(steps):
        started = time.process_time()
        without()
        spent[0] += time.process_time() - started
        started = time.process_time()
        step()
        spent[1] += time.process_time() - started
    read = monitor.read()
    return {
        "ratio": spent[1] / spent[0],
        "own account": 1 + (read.cost or 0.0),
        "measured": monitor.counts.measured,
        "steps": steps,
    }


def memory(case_name: str, method: str) -> float | None:
    """Peak bytes of a method above model and data, in a process of its own."""
    command = [sys.executable, __file__, "--memory", case_name, method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def _memory(case_name: str, method: str) -> None:
    case = cases()[case_name]
    model = case.model()
    step = METHODS[method](case, model)
    small = Case(case.model, case.inputs[:2], case.targets[:2], case.logits)
    METHODS["plain"](small, model)()  # libraries are loaded, buffers are made
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _resident()
    for _ in range(4):
        step()
    print(_resident() - before)


def _resident() -> float:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def exactness(case: Case) -> float:
    """Largest relative error of our norms against the loop over examples."""
    from rightbatch.noise.capture.per_example import PerExample

    torch.manual_seed(0)
    model = case.model()
    count = len(case.inputs)

    def total(model: nn.Module, indices: Tensor) -> Tensor:
        mean = case.loss(model, case.inputs[indices], case.targets[indices])
        return mean * len(indices)

    counter = PerExample(
        model, list(model.parameters()), total, lambda i, b: i[b : b + 1]
    )
    mine = counter.squares(torch.arange(count), count).sum(1)
    truth = torch.tensor(by_loop(case, model)(), dtype=torch.float64)
    return float(((mine - truth).abs() / truth).max())


def main() -> None:
    """Print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--memory", nargs=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.memory:
        return _memory(*options.memory)
    report: dict[str, Any] = {}
    for name, case in cases().items():
        if options.only and name not in options.only:
            continue
        found = times(case, options.rounds)
        base = memory(name, "plain")
        print(f"\n{name}: plain {found['plain']['ms']:.1f} ms")
        for method, figures in found.items():
            if "fails" in figures:
                print(f"  {method:22} fails: {figures['fails'][:50]}")
                continue
            peak = memory(name, method)
            if peak and base:
                figures["memory"] = peak / base
            low, high = figures["quartiles"]
            print(
                f"  {method:22} {figures['ratio']:6.2f} x  ({low:.2f} to {high:.2f})"
                f"   memory {figures.get('memory', math.nan):5.2f} x"
            )
        report[name] = {"methods": found, "amortised": amortised(case, options.steps)}
        report[name]["error"] = exactness(case)
        print(
            "  as it comes: {ratio:.3f} x, {measured} of {steps} steps".format(
                **report[name]["amortised"]
            )
        )
        print(f"  our norms against the loop: {report[name]['error']:.1e}", flush=True)
    write_json("-".join(["noise-cost", *(options.only or [])]), report)
    return None


if __name__ == "__main__":
    main()
