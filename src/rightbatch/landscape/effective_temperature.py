"""The temperature of stochastic gradient descent, and where the picture ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.core.real_number import real_number
from rightbatch.core.units import show_number
from rightbatch.core.whole_number import whole_number
from rightbatch.landscape.stationary import (
    checked,
    reshuffled_variance,
    stationary_variance,
)
from rightbatch.noise.statistics.scale import NoiseScale

# Of lr times curvature over 1 + momentum: there T / curvature is 5 % short of the
# variance. [derived: 1 / (1 - x / 2)]
SMALL = 0.1
COLD = 0.95  # of the variance with replacement: less of it is told [assumed]
UNEVEN = 2.0  # times as much noise in one layer's coordinates as in another's [assumed]


@dataclass(frozen=True, slots=True)
class Temperature:
    """T of plain SGD or SGD with heavy-ball momentum, and what it rests on.

    Attributes:
        value: lr sigma^2 / (2 B (1 - momentum)), in units of the loss.
        exact: T / (1 - x / 2), x = lr curvature / (1 + momentum): curvature times the
            variance along the given one, drawn with replacement. None: none was given.
        noise: sigma^2, the variance of one example's gradient in one coordinate.
        lr: Learning rate.
        batch_size: B, examples per step.
        momentum: As torch's SGD has it, without dampening.
        examples: In the data set; None: not told, or drawn with replacement.
        caveats: What is not as the picture assumes, each in a sentence with numbers.
    """

    value: Estimate
    exact: Estimate | None
    noise: Estimate
    lr: float
    batch_size: int
    momentum: float
    examples: int | None
    caveats: tuple[str, ...]

    def stationary_variance(self, curvature: float) -> Estimate:
        """Of the weight along a direction of this curvature, its sampling included.

        Raises:
            SettingError: The direction is not stable at this learning rate.
        """
        about = (self.lr, 1.0, curvature, self.batch_size)
        if self.examples is None:
            share = stationary_variance(*about, momentum=self.momentum)
        else:
            share = reshuffled_variance(*about, self.examples, momentum=self.momentum)
        return self.noise.scale(share)


def temperature(
    noise: NoiseScale | Estimate | float,
    *,
    lr: float,
    batch_size: int,
    momentum: float = 0.0,
    curvature: float | None = None,
    examples: int | None = None,
    replacement: bool = False,
    parameters: int | None = None,
) -> Temperature:
    """The effective temperature of SGD from measured noise.

    Near a minimum of curvature k the weight scatters with variance T / k if lr k is
    small, the noise is alike in all directions and does not depend on the weights, and
    examples are drawn with replacement. What of this can be checked is told in
    ``caveats``. Adam has no such temperature.

    Args:
        noise: Of `rightbatch.noise_scale`: sigma^2 = its trace over all parameters, by
            their number; or sigma^2 of one coordinate.
        lr: Learning rate.
        batch_size: Examples per step.
        momentum: Heavy-ball momentum, below 1.
        curvature: The largest eigenvalue of the Hessian, to check lr by.
        examples: In the data set, for reshuffled epochs; default what ``noise`` knows.
        replacement: Whether each batch is drawn from the whole data set; a shuffling
            loader's are not.
        parameters: Trainable numbers; default: those that ``noise`` has counted.

    Raises:
        SettingError: An argument makes no sense, or SGD diverges at this ``lr``.
        UnidentifiedError: No noise has been told from zero.

    Example:
        >>> import rightbatch as rb
        >>> heat = temperature(4.0, lr=0.1, batch_size=8, curvature=2.0,
        ...     replacement=True)
        >>> print(heat.value, heat.exact, heat.stationary_variance(2.0))
        0.025 0.0278 0.0139
        >>> heat.caveats[0]
        'lr x curvature = 0.2 is not small: the variance is 1.11 times T / curvature'

    References:
        Mandt et al. 2017, arXiv:1704.04289; Jastrzebski et al. 2017, arXiv:1711.04623;
        exact in lr: Yaida 2018, arXiv:1810.00004.
    """
    lr, batch, momentum = checked(lr, batch_size, momentum)
    sigma = _per_coordinate(noise, parameters)
    if isinstance(noise, NoiseScale) and examples is None:
        examples = noise.population
    if examples is not None:
        examples = whole_number(examples, "examples", least=batch)
    value = sigma.scale(lr / (2 * batch * (1 - momentum)))
    pool = None if replacement else examples
    heat = Temperature(value, None, sigma, lr, batch, momentum, pool, ())
    caveats = ["curvature= was not given: lr x curvature is not checked"]
    if curvature is not None:
        hot = stationary_variance(lr, 1.0, curvature, batch, momentum) * curvature
        heat, caveats = replace(heat, exact=sigma.scale(hot)), []
        if lr * curvature > SMALL * (1 + momentum):
            factor = hot * 2 * batch * (1 - momentum) / lr
            caveats = [
                f"lr x curvature = {show_number(lr * curvature)} is not small: the "
                f"variance is {show_number(factor)} times T / curvature"
            ]
    if not replacement:
        caveats.append(_about_reshuffling(heat, curvature))
    if isinstance(noise, NoiseScale):
        caveats += _about_layers(noise)
    return replace(heat, caveats=tuple(caveats))


def _per_coordinate(
    noise: NoiseScale | Estimate | float, parameters: int | None
) -> Estimate:
    """sigma^2 of one coordinate, never below zero."""
    if isinstance(noise, NoiseScale):
        counted = sum(layer.parameters for layer in noise.by_layer.values())
        if not (parameters or counted):
            raise SettingError(
                "the number of parameters behind this noise is not known",
                why="sigma^2 of a coordinate is tr Sigma over their number",
                fix="parameters=sum(p.numel() for p in model.parameters())",
            )
        sigma = noise.trace.scale(1 / whole_number(parameters or counted, "parameters"))
    elif isinstance(noise, Estimate):
        sigma = noise
    else:
        sigma = Estimate.exact(real_number(noise, "noise", positive=True))
    if not 0 < sigma.value < math.inf:
        raise UnidentifiedError(
            "the gradient's noise is not told from zero", seen=f"sigma^2 = {sigma}"
        )
    return sigma.map(lambda s: max(s, 0.0))


def _about_reshuffling(heat: Temperature, curvature: float | None) -> str:
    if heat.examples is None:
        return (
            "if epochs are reshuffled, flat directions are colder than T: examples= "
            "the data set's size tells which, replacement=True that none are"
        )
    steps = heat.lr * heat.examples / heat.batch_size / (1 - heat.momentum)
    text = (
        "epochs are reshuffled: directions of a curvature not far above "
        f"{show_number(1 / steps)} are colder than T"
    )
    if curvature is None or heat.exact is None:
        return text
    share = heat.stationary_variance(curvature).value * curvature / heat.exact.value
    told = f"; that of {show_number(curvature)} has {share:.2g} of the exact T"
    return text + (told if share < COLD else "")


def _about_layers(noise: NoiseScale) -> list[str]:
    """Whether coordinates of one layer are noisier than another's."""
    levels = sorted(
        (layer.trace.value / layer.parameters, name)
        for name, layer in noise.by_layer.items()
        if layer.parameters and layer.trace.value > 0
    )
    if not levels or levels[-1][0] <= UNEVEN * levels[0][0]:
        return []
    (least, quiet), (most, loud) = levels[0], levels[-1]
    return [
        f"the noise is not isotropic: {show_number(most / least)} times as large in a "
        f"coordinate of {loud} as of {quiet}; T is the mean over all"
    ]
