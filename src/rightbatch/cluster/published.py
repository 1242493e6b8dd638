"""Critical batches that others have measured: priors for a job not yet measured.

Each with its workload, the range of batches it was seen in, and its source. Every law
is our own fit (`fit_steps`) of published numbers; the numbers are in the sources.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.fit.critical_batch import DRAWS, NoiseLaw

RCP = "MLCommons reference convergence points (github.com/mlcommons/logging)"
ZHANG = "Zhang et al. 2024, arXiv:2410.21676, language models, context 512"


@dataclass(frozen=True, slots=True)
class Published:
    """A measured critical batch.

    Attributes:
        workload: What was trained.
        critical_batch: Where steps and examples are both twice their least
            (McCandlish et al. 2018), in ``unit``.
        low: Lower end of its 95 % interval.
        high: Upper end.
        smallest: Smallest batch it was seen at.
        largest: Largest batch.
        unit: What is counted.
        source: Whose measurements.
    """

    workload: str
    critical_batch: float
    low: float
    high: float
    smallest: int
    largest: int
    unit: str = "examples"
    source: str = RCP

    @property
    def domain(self) -> str:
        """Where it was seen."""
        return f"batches of {self.smallest:,} to {self.largest:,} {self.unit}"


def _lm(
    parameters: str, critical: float, low: float, high: float, source: str = ZHANG
) -> Published:
    name, unit = f"language model, {parameters} parameters", "sequences of 512 tokens"
    return Published(name, critical, low, high, 64, 16384, unit, source)


# `python benchmarks/steps_law.py` fits them again; those with 4 batch sizes or more
# whose critical batch could be identified, of 23 and 5.
PUBLISHED: tuple[Published, ...] = (
    Published("bert (phase 2, LAMB)", 12770, 10120, 16560, 256, 16384),
    Published("deepcam (climate segmentation)", 849.7, 475.3, 1614, 128, 2048),
    Published("dlrm_dcnv2 (recommendation)", 316000, 240800, 435700, 32768, 160000),
    Published("flux1 (text to image)", 2752, 1968, 3964, 512, 4096),
    Published("gnn (R-GAT, node classification)", 116200, 104100, 130000, 4096, 262144),
    Published("gpt3 (175 B)", 16820, 11020, 29690, 1536, 8192),
    Published("llama2_70b_lora (fine-tuning)", 39.88, 9.647, 186.2, 8, 128),
    Published("llama31_405b", 5635, 4776, 6696, 1008, 9216),
    Published("llama31_8b", 83.68, 64.04, 111.4, 16, 128),
    Published("maskrcnn", 816.4, 592.1, 1242, 8, 272),
    Published("resnet (ResNet-50, ImageNet)", 47240, 42030, 53390, 1632, 67840),
    Published("retinanet", 1379, 1021, 1882, 256, 4096),
    Published("rnnt (speech)", 3698, 3090, 4462, 512, 6144),
    Published("stable_diffusion", 1137, 790.5, 1675, 256, 2048),
    _lm("85 M", 2235, 1891, 2650),
    _lm("151 M", 3303, 2693, 4086),
    _lm("302 M", 5433, 4740, 6262),
    _lm("604 M", 7907, 6698, 9434),
    _lm("1.2 B", 11140, 9436, 13330),
)
# The critical batch against parameters in a line of logarithms through the five fits
# above, data growing along (about 20 tokens a parameter); they lie within 8 % of it
# [derived].
GROWTH, LEVEL, SCATTER = 0.6105, 0.03363, 1.08
SIZES = (85e6, 1.2e9)  # their parameters
BEYOND = 3.0  # how far outside of where it was seen a law is still shown [assumed]


def language_model(parameters: float) -> Published:
    """The critical batch of a language model of so many parameters.

    Trained on about 20 tokens a parameter, so that data grow along; `GROWTH` is its
    exponent. Beyond a factor of 3 outside of 85 M to 1.2 B parameters it is refused.

    Raises:
        SettingError: Outside of where it was seen.

    Example:
        >>> round(language_model(3e8).critical_batch, -2)
        5000.0
    """
    low, high = SIZES
    if not low / BEYOND <= parameters <= high * BEYOND:
        raise SettingError(
            "no critical batch was measured for a language model of this size",
            seen=f"{parameters:.3g} parameters; seen were {low:.3g} to {high:.3g}",
            fix="measure the job: rightbatch measure JOB",
        )
    critical = LEVEL * parameters**GROWTH
    inside = low <= parameters <= high
    factor = SCATTER**2 if inside else SCATTER**4
    source = f"{ZHANG}, between its sizes" if inside else f"{ZHANG}, extended"
    low, high = critical / factor, critical * factor
    return _lm(f"{parameters / 1e6:.3g} M", critical, low, high, source)


def noise_of(prior: Published, seed: int = 0) -> NoiseLaw:
    """A published law in the place of measured noise, with draws of its interval."""
    spread = math.log(prior.high / prior.low) / (2 * 1.96)
    random = np.random.default_rng(seed)
    draws = prior.critical_batch * np.exp(spread * random.standard_normal(DRAWS))
    critical = Estimate(
        value=prior.critical_batch,
        low=prior.low,
        high=prior.high,
        unit="examples",
        method=f"published: {prior.workload}, {prior.domain}",
    )
    return NoiseLaw(critical, draws, published=True)


def published(workload: str) -> Published:
    """The law of a workload whose name begins so, or has this word in it.

    Raises:
        SettingError: It is not among them, or the name fits several.

    Example:
        >>> published("resnet").critical_batch
        47240
    """
    word = workload.lower()
    matches = [p for p in PUBLISHED if p.workload.lower().startswith(word)]
    if not matches and word:
        matches = [p for p in PUBLISHED if word in p.workload.lower()]
    if len(matches) != 1:
        names = "; ".join(p.workload.split(" (")[0] for p in PUBLISHED)
        raise SettingError(
            f"{'no' if not matches else 'more than one'} published law is named "
            f"{workload!r}",
            fix=f"one of: {names}",
        )
    return matches[0]


def prior_named(name: str) -> Published:
    """A published law by its name; ``lm:300M`` is a language model of that size.

    Raises:
        SettingError: There is none of that name.
    """
    size = re.fullmatch(r"lm:(\d+\.?\d*)([MB])", name)
    if size is None:
        return published(name)
    return language_model(float(size[1]) * {"M": 1e6, "B": 1e9}[size[2]])
