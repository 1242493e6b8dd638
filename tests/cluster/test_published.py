"""Critical batches that others measured: each with its domain and source."""

from __future__ import annotations

import numpy as np
import pytest

import rightbatch as rb
from rightbatch.cluster.published import (
    PUBLISHED,
    language_model,
    noise_of,
    published,
)


def test_published_laws_have_a_domain_and_a_source() -> None:
    for law in PUBLISHED:
        assert law.low < law.critical_batch < law.high
        assert law.smallest < law.largest
        assert law.source
        assert f"{law.largest:,}" in law.domain
    assert published("resnet").critical_batch == 47240
    for law in PUBLISHED[-5:]:  # the line through them: within 8 %
        size = float(law.workload.split()[2]) * (1e9 if " B " in law.workload else 1e6)
        line = language_model(size)
        assert line.critical_batch == pytest.approx(law.critical_batch, rel=0.08)
        assert line.low < law.critical_batch < line.high
    with pytest.raises(rb.SettingError, match="of this size"):
        language_model(7e10)
    noise = noise_of(published("rnnt"))
    low, high = np.quantile(noise.draws, [0.025, 0.975])
    assert (low, high) == pytest.approx((3090, 4462), rel=0.05)
    for wrong in ("language model", "nothing"):
        with pytest.raises(rb.SettingError, match="published law"):
            published(wrong)
