"""The page of a study shows its sentences, its numbers and its charts."""

import re
from pathlib import Path

from rightbatch.measure.measurements import Measurements
from rightbatch.plan.choice import choose
from rightbatch.sweep.batch_rate_study import Study
from rightbatch.sweep.study_page import study_page


def test_the_page_of_a_study(studied: tuple[Path, Study]) -> None:
    folder, study = studied
    html = study_page(study, choose(Measurements.load(folder / "measurements.json")))
    assert all(text in html for text in study.sentences)
    drawn = set(re.findall(r'class="chart" id="(\w+)"', html))
    assert drawn == {"map", "contours_examples", "contours_time", "curves"}
    assert "http://" not in re.sub(r"<script.*?</script>", "", html, flags=re.S)
