"""How far SGD scatters around a minimum, exactly, for one direction of it."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from rightbatch.core.errors import SettingError
from rightbatch.core.real_number import real_number
from rightbatch.core.units import show_number
from rightbatch.core.whole_number import whole_number


def stationary_variance(
    lr: float, noise: float, curvature: float, batch: int, momentum: float = 0.0
) -> float:
    """Of a weight under SGD on ``curvature w^2 / 2``, batches drawn with replacement.

    lr noise (1 + mu) / (B k (1 - mu) (2 (1 + mu) - lr k)): exact for every stable
    ``lr``, whatever the distribution of the noise [derived].

    Args:
        lr: Learning rate.
        noise: Variance of one example's gradient.
        curvature: k > 0.
        batch: Examples per step.
        momentum: Heavy-ball, mu.

    Raises:
        SettingError: lr curvature is 2 (1 + momentum) or more: nothing is stationary.

    Example:
        >>> round(stationary_variance(0.1, 1.0, 1.0, 1), 4)
        0.0526
    """
    lr, batch, mu = checked(lr, batch, momentum)
    k = _stable(lr, curvature, mu)
    return lr * noise * (1 + mu) / (batch * k * (1 - mu) * (2 * (1 + mu) - lr * k))


def reshuffled_variance(
    lr: float,
    noise: float,
    curvature: float,
    batch: int,
    examples: int,
    momentum: float = 0.0,
) -> float:
    """The same at the end of epochs that are reshuffled; a short last batch dropped.

    The gradients' errors of an epoch's N / B steps have variance
    noise / B (N - B) / (N - 1) and covariance -noise / (N - 1), so that they almost
    cancel where a direction remembers whole epochs, lr k N / B << 1 [derived].

    Args:
        lr: Learning rate.
        noise: Variance of one example's gradient, over the data set.
        curvature: k > 0.
        batch: B, examples per step.
        examples: N, in the data set.
        momentum: Heavy-ball.

    Raises:
        SettingError: The direction is not stable, or a batch larger than the data set.

    Example:
        >>> few = reshuffled_variance(0.1, 1.0, 0.1, 32, 1024)
        >>> round(few / stationary_variance(0.1, 1.0, 0.1, 32), 4)
        0.0085
    """
    lr, batch, mu = checked(lr, batch, momentum)
    k = _stable(lr, curvature, mu)
    examples = whole_number(examples, "examples", least=max(batch, 2))
    step = np.array([[1 - lr * k, -lr * mu], [k, mu]])  # of (weight, velocity)
    reach = [np.array([-lr, 1.0])]  # of an error, so many steps later
    for _ in range(examples // batch - 1):
        reach.append(step @ reach[-1])
    reaches = np.stack(reach)
    covariance = -noise / (examples - 1)
    variance = noise / batch * (examples - batch) / (examples - 1)
    total = reaches.sum(0)
    epoch = (variance - covariance) * reaches.T @ reaches
    epoch += covariance * np.outer(total, total)
    whole = np.linalg.matrix_power(step, len(reach))
    settled = np.asarray(solve_discrete_lyapunov(whole, epoch))
    return max(float(settled[0, 0]), 0.0)


def checked(lr: float, batch: int, momentum: float) -> tuple[float, int, float]:
    """The same numbers, where they make sense as those of SGD."""
    momentum = real_number(momentum, "momentum")
    if not 0 <= momentum < 1:
        raise SettingError("momentum must be from 0 to below 1", seen=f"{momentum=}")
    return (
        real_number(lr, "lr", positive=True),
        whole_number(batch, "batch_size"),
        momentum,
    )


def _stable(lr: float, curvature: float, momentum: float) -> float:
    """The curvature, where SGD stays in its valley."""
    k = real_number(curvature, "curvature", positive=True)
    limit = 2 * (1 + momentum)
    if lr * k >= limit:
        raise SettingError(
            "SGD diverges along this direction: there is no temperature",
            seen=f"lr x curvature = {show_number(lr * k)}, from {limit:g} on unstable",
            fix=f"lr below {show_number(limit / k)}",
        )
    return k
