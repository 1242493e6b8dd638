"""The terminal's progress: one lasting line for a phase that finished."""

import io
import time
from contextlib import suppress

import pytest
from rich.console import Console

from rightbatch.report.terminal import TerminalProgress, wrapped


def printed(is_terminal: bool) -> tuple[TerminalProgress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=80)
    return TerminalProgress(console, phases=4), out


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_line_for_every_phase_that_finished(is_terminal: bool) -> None:
    progress, out = printed(is_terminal)
    with progress.phase("Check the job", 3.0) as phase:
        phase.update("rule 1")
        phase.summary = "ok: 10 rules"
    with suppress(KeyboardInterrupt), progress.phase("Time and memory", 9.0):
        raise KeyboardInterrupt
    assert progress.line.status is None  # the live line is gone
    with progress.phase("Gradient noise", 9.0) as phase:
        phase.summary = "noise scale 26.1 (16.7 to 56.2), 8 points, all at target"
    text = out.getvalue()
    assert " 1/4  Check the job    ok: 10 rules" in text
    line = text.splitlines()[-1]
    assert line.split("   ")[1].strip().endswith("(16.7 to 56.2), 8 points")
    if not is_terminal:
        lines = text.splitlines()
        assert len(lines) == 2
        assert max(map(len, lines)) <= 80


def test_piped_a_long_phase_speaks_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, out = printed(False)
    with progress.phase("Race", 30.0) as phase:
        for now in (1.0, 11.0, 12.0, 22.0):
            phase.update(f"round {now:g}")
    said = [line for line in out.getvalue().splitlines() if "round" in line]
    assert [line.split(",")[0].split()[-1] for line in said] == ["11", "22"]
    assert "up to 8 s left" in said[-1]


def test_words_stay_whole() -> None:
    text = wrapped("Why", "the affine-power law is minimised numerically " * 4)
    assert "affine-power" in text
    assert max(map(len, text.splitlines())) <= 80
