"""Which batch and rate to begin with when nothing can be measured yet: a prior."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.cluster.batch_laws import BATCH_LAWS, BEST, CRITICAL, RATE, Prior
from rightbatch.cluster.published import noise_of, published
from rightbatch.core.errors import SettingError
from rightbatch.core.real_number import real_number
from rightbatch.job.optimizers import DECOUPLED, DECOUPLED_FAMILIES, FAMILIES
from rightbatch.schedules.scaling import LEAST_BETA2, Scaling, scaling_for

LAWS = "pre-training of transformer"
# Other jobs with a published critical batch: points, no law of their size.
POINTS = {
    LAWS: (),
    "pre-training of convolution": ("deepcam", "maskrcnn", "resnet", "retinanet"),
    "pre-training of diffusion": ("flux1", "stable_diffusion"),
    "pre-training of graph": ("gnn",),
    "pre-training of recommendation": ("dlrm_dcnv2",),
    "pre-training of speech": ("rnnt",),
    "fine-tuning of transformer": ("llama2_70b_lora",),
}
RATIO = 20  # tokens a parameter [cited: Hoffmann et al. 2022, arXiv:2203.15556]
HALF_LIFE = 1e7  # of beta2, in tokens [cited: Marek et al. 2025, arXiv:2507.07101]
TUNING = (
    "; noise decides, not the data's size: by reinforcement (GRPO, three batches, same "
    "source) it was 1,106; small batches do (Marek et al. 2025, arXiv:2507.07101)"
)
TOO_FAR = (
    "no law was seen near this job: beyond its domain a law's batch took 4 to 6 x the "
    "tokens (nanochat, issue 851)"
)


@dataclass(frozen=True, slots=True)
class Advice:
    """A prior for a job that was not measured.

    Attributes:
        priors: What each publication says, those that are silent too.
        low: Smallest batch to begin with, in ``unit``; None: no law speaks.
        high: Largest.
        unit: ``"tokens"`` or ``"examples"``.
        rule: How the range was made, or why there is none, and what was assumed.
        scaling: How the optimizer's numbers follow the batch from ``low`` to ``high``.
        beta2: Adam's at ``low`` and ``high``; empty where batches are not in tokens.
    """

    priors: tuple[Prior, ...]
    low: int | None
    high: int | None
    unit: str
    rule: str
    scaling: Scaling | None = None
    beta2: tuple[float, ...] = ()


def advise(
    *,
    task: str = "pre-training",
    parameters: float | None = None,
    tokens: float | None = None,
    examples: float | None = None,
    sequence: float | None = None,
    optimizer: str = "adamw",
    model: str = "transformer",
) -> Advice:
    """Advise a range of batches from published laws, without running anything.

    Up to `published.BEYOND` outside of where a law was seen it is shown and marked, and
    used only where none is inside; further away it says no number. For fine-tuning
    there is a point but no law: gradient noise decides, not the data's size.

    Args:
        task: ``"pre-training"`` or ``"fine-tuning"``.
        parameters: Of the model, without embeddings; None: a 20th of the tokens.
        tokens: Of the whole run; None: 20 a parameter.
        examples: Of the whole run; with ``sequence`` in the place of tokens.
        sequence: Tokens of an example.
        optimizer: Its class's name, in any letters.
        model: Its kind, see ``POINTS``.

    Raises:
        SettingError: A word or a number that makes no sense, or no size at all.

    Example:
        >>> advice = advise(parameters=3e8, tokens=6e9)
        >>> f"{advice.low:.3g} to {advice.high:.3g} {advice.unit}"
        '2.22e+05 to 2.58e+06 tokens'
    """
    for size in (parameters, tokens, examples, sequence):
        real_number(1.0 if size is None else size, "a size", positive=True)
    kind, names = f"{task} of {model}", {name.lower(): name for name in FAMILIES}
    for word, known in ((kind, POINTS), (optimizer.lower(), names)):
        if word not in known:
            what = f"nothing is published of {word!r}"
            raise SettingError(what, fix=f"one of: {', '.join(known)}")
    if examples and (tokens or (kind == LAWS and not sequence)):
        what = "examples go with sequence, in the place of tokens"
        raise SettingError(what, fix="tokens alone, or examples and sequence")
    name = names[optimizer.lower()]
    family = FAMILIES[name]
    if kind == LAWS:
        data = tokens or (examples or 0.0) * (sequence or 0.0)
        priors = _by_laws(parameters or data / RATIO, data)
        if family != "adam":  # their rates are Adam's, at the best batch
            priors = tuple(prior for prior in priors if prior.number != RATE)
        low, high, rule = _range(priors)
        rule += "" if parameters and data else f"; {RATIO} tokens a parameter assumed"
        rule += "" if name == "AdamW" else "; laws are of AdamW"
        if family == "sgd":
            low, rule = None, "the laws are of AdamW; none is published of SGD"
    else:
        priors = tuple(_point(workload) for workload in POINTS[kind])
        low, high, rule = _range(priors)
        rule += TUNING
        if task == "pre-training":
            low, rule = None, "those are points of other jobs, not a law"
    unit = "tokens" if kind == LAWS else "examples"
    if low is None or high is None:
        return Advice(priors, None, None, unit, rule)
    if unit == "examples" and examples:
        low, high = (max(1, min(end, int(examples))) for end in (low, high))
    scaling = scaling_for(
        family,
        low,
        high,
        noise_scale=min(_values(priors, CRITICAL), default=None),
        decoupled_decay=name in DECOUPLED or family in DECOUPLED_FAMILIES,
    )
    beta2 = ()
    if unit == "tokens" and family == "adam":
        beta2 = tuple(max(LEAST_BETA2, 0.5 ** (b / HALF_LIFE)) for b in (low, high))
    return Advice(priors, low, high, unit, rule, scaling, beta2)


def _by_laws(parameters: float, tokens: float) -> tuple[Prior, ...]:
    """What every law says of a language model."""
    if not parameters:
        fix = "parameters (--parameters 300M), tokens (--tokens 6B), or both"
        raise SettingError("nothing says how large the job is", fix=fix)
    data = tokens or parameters * RATIO
    sizes = {"parameters": parameters, "tokens": data, "FLOPs": 6 * parameters * data}
    sizes["tokens a parameter"] = data / parameters
    return tuple(law.prior(sizes) for law in BATCH_LAWS)


def _point(workload: str) -> Prior:
    """The critical batch of another job."""
    point = published(workload)
    domain = f"{point.workload}, {point.domain}"
    critical = noise_of(point).critical_batch
    return Prior(CRITICAL, critical, domain, "another job", point.source)


def _values(priors: tuple[Prior, ...], number: str) -> list[float]:
    """The values of one number: of the laws seen near the job, else of those marked."""
    seen = [p for p in priors if p.number == number and p.estimate is not None]
    inside = [p for p in seen if p.standing == "inside"]
    return [p.estimate.value for p in inside or seen if p.estimate is not None]


def _range(priors: tuple[Prior, ...]) -> tuple[int | None, int | None, str]:
    """A range of batches, and how it came about."""
    best, critical = _values(priors, BEST), _values(priors, CRITICAL)
    if not (best or critical):
        return None, None, TOO_FAR
    if best:  # twice it costs about 5 % of compute (Schaipp 2026, arXiv:2607.01487)
        low, high = min(best), min(critical, default=2 * max(best))
        rule = "from the lowest best batch (time is lost below) to "
        rule += "the lowest critical" if critical else "twice the highest best"
    else:  # data = least * (1 + B / B_crit)
        low, high = min(critical) / 5, min(critical)
        rule = "a fifth of the lowest critical batch to all of it: 1.2 to 2 x the "
        rule += "least data, where critical means twice"
    if not any(p.standing == "inside" for p in priors):
        rule += "; carried over from other sizes or jobs"
    return max(1, round(low)), max(1, round(high)), rule
