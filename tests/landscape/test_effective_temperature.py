"""Temperature: from the product's own noise, and told where it does not hold."""

from dataclasses import replace

import pytest

import rightbatch as rb
from cases import regression_job
from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.landscape.effective_temperature import temperature
from rightbatch.landscape.stationary import reshuffled_variance, stationary_variance
from rightbatch.noise.statistics.scale import LayerNoise, NoiseScale


def test_it_takes_the_noise_of_the_job() -> None:
    noise = rb.noise_scale(regression_job(examples=64), exact=True)
    heat = temperature(noise, lr=0.01, batch_size=8, momentum=0.5)
    assert noise.by_layer["weight"].parameters == 5
    assert heat.noise.value == pytest.approx(noise.trace.value / 5)
    assert heat.value.value == pytest.approx(heat.noise.value * 0.01 / (2 * 8 * 0.5))
    assert heat.examples == 64
    sampled = rb.noise_scale(regression_job(examples=64), budget_s=0.1)
    assert sampled.by_layer["weight"].parameters == 5


def test_the_interval_travels_along() -> None:
    noise = Estimate(value=4.0, low=-1.0, high=6.0)
    heat = temperature(noise, lr=0.1, batch_size=2, curvature=1.0, replacement=True)
    assert (heat.value.low, heat.value.high) == pytest.approx((0.0, 0.15))
    assert heat.exact is not None
    assert heat.exact.value == pytest.approx(heat.value.value / 0.95)
    assert heat.caveats == ()


def test_sampling_decides_the_variance() -> None:
    about = {"lr": 0.1, "batch_size": 32, "curvature": 0.1}
    drawn = temperature(1.0, **about, replacement=True, examples=1024)
    shuffled = temperature(1.0, **about, examples=1024)
    assert drawn.stationary_variance(0.1).value == stationary_variance(0.1, 1, 0.1, 32)
    right = reshuffled_variance(0.1, 1, 0.1, 32, 1024)
    assert shuffled.stationary_variance(0.1).value == right
    assert any("0.0085 of the exact T" in text for text in shuffled.caveats)
    assert any("examples=" in text for text in temperature(1.0, **about).caveats)


def test_what_does_not_hold_is_told() -> None:
    large = temperature(1.0, lr=0.5, batch_size=4, curvature=2.0, replacement=True)
    assert "2 times T" in large.caveats[0]
    unchecked = temperature(1.0, lr=0.5, batch_size=4, replacement=True)
    assert "not checked" in unchecked.caveats[0]
    with pytest.raises(SettingError, match=r"diverges"):
        temperature(1.0, lr=1.0, batch_size=4, curvature=2.0)


def test_noise_that_differs_from_layer_to_layer_is_told() -> None:
    def layer(trace: float, parameters: int) -> LayerNoise:
        known = Estimate.exact(trace)
        return LayerNoise(
            noise_scale=known,
            trace=known,
            grad_norm_sq=known,
            share=0.5,
            parameters=parameters,
        )

    one = Estimate.exact(2.0)
    whole = NoiseScale(noise_scale=one, trace=one, grad_norm_sq=one)
    uneven = replace(whole, by_layer={"first": layer(1, 90), "last": layer(1, 10)})
    heat = temperature(uneven, lr=0.1, batch_size=4)
    assert heat.noise.value == pytest.approx(0.02)
    assert "9 times as large in a coordinate of last" in heat.caveats[-1]
    even = replace(whole, by_layer={"first": layer(1, 50), "last": layer(1, 50)})
    assert "isotropic" not in " ".join(temperature(even, lr=0.1, batch_size=4).caveats)
    with pytest.raises(SettingError, match=r"number of parameters"):
        temperature(whole, lr=0.1, batch_size=4)
    nothing = replace(whole, trace=Estimate(value=0.0, low=-1.0, high=1.0))
    with pytest.raises(UnidentifiedError):
        temperature(nothing, lr=0.1, batch_size=4, parameters=3)
