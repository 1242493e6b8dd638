"""Phases: told as they begin, go on and end, whether they finish or not."""

import time

import pytest

from rightbatch.core.progress import Phase, Progress


class Listener(Progress):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def began(self, phase: Phase) -> None:
        self.heard.append((phase.name, "began"))

    def updated(self, phase: Phase, text: str) -> None:
        self.heard.append((phase.name, text))

    def ended(self, phase: Phase, finished: bool) -> None:
        self.heard.append((phase.name, phase.summary if finished else "broke off"))


def test_a_phase_is_told_from_beginning_to_end() -> None:
    listener = Listener()
    with listener.phase("Race", budget_s=3.0) as phase:
        assert phase.budget_s == 3.0
        time.sleep(0.01)
        phase.update("round 1")
        phase.summary = "8 rounds"
    assert phase.elapsed_s >= 0.01
    assert [text for _, text in listener.heard] == ["began", "round 1", "8 rounds"]


def test_what_breaks_a_phase_off_ends_it_and_goes_on() -> None:
    listener = Listener()
    with pytest.raises(KeyboardInterrupt), listener.phase("Race", 3.0) as phase:
        phase.summary = "8 rounds"
        raise KeyboardInterrupt
    assert listener.heard == [("Race", "began"), ("Race", "broke off")]
