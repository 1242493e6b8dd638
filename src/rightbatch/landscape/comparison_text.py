"""What a comparison of batches says: a few sentences, and a table."""

from __future__ import annotations

from collections import defaultdict

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.landscape.comparison import KEPT, TITLES, Comparison, Setting

# A difference within so much of what training gains is none that matters. [assumed]
MATTERS = 0.01


def rate_words(rule: str) -> str:
    """How a rate followed the batch."""
    return "the same rate" if rule == KEPT else f"the {rule} rate"


def judged(comparison: Comparison, setting: Setting) -> str:
    """What a setting's difference from the smallest batch shows of generalising.

    "worse" and "better" where the interval says which; "as good" where it lies within
    1 % of what training gains; else "undecided", also where no pair came to the end.
    """
    difference = comparison.difference(setting)
    if difference is None:
        return "undecided"
    if difference.low > 0 or difference.high < 0:
        rises = "worse" if comparison.goal == "min" else "better"
        falls = "better" if comparison.goal == "min" else "worse"
        return rises if difference.low > 0 else falls
    widest = max(-difference.low, difference.high)
    return "as good" if widest <= MATTERS * comparison.gained else "undecided"


def sentences(comparison: Comparison) -> list[str]:
    """Whether the largest batch generalises worse, by how much, and what it lacks."""
    texts, least = list[str](), comparison.smallest
    most = max((run.batch_size for run in comparison.runs), default=0)
    large = [s for s in comparison.compared("loss") if s[1] == most]
    if large and not any(map(comparison.difference, large)):
        texts.append(
            f"At matched training loss B = {most:,} and {least:,} cannot be compared: "
            f"no seed has both at {comparison.level:.3g}."
        )
    elif large:
        rates = defaultdict(list)
        for setting in large:
            rates[judged(comparison, setting)].append(rate_words(setting[2]))
        worse, fine = rates["worse"], rates["as good"] + rates["better"]
        verdict = f"At matched training loss B = {most:,} generalises "
        verdict += f"{'' if worse else 'no '}worse than {least:,} with "
        verdict += " and ".join(worse or fine)
        if worse and fine:
            verdict += f", not with {' and '.join(fine)}: it is the rate, not the batch"
        elif not worse and not fine:
            verdict = f"Undecided whether B = {most:,} generalises worse than "
            verdict += f"{least:,} at matched training loss; more seeds would tell"
        difference = _joined(comparison, large)
        if not worse and fine:
            margin = show_number(MATTERS * comparison.gained)
            verdict += f" (by less than {margin}, 1 % of what training gains)"
        texts.append(f"{verdict}.")
        ends = [
            run.train_loss
            for run in comparison.runs
            if run.budget == "loss" and run.end == "done"
        ]
        # A step at a large rate may pass the level by some way.
        matched = list(dict.fromkeys(f"{end:.3g}" for end in (min(ends), max(ends))))
        texts.append(
            f"At training loss {' to '.join(matched)}, held out B = {most:,} is off "
            f"from B = {least:,} by {difference}."
        )
    if comparison.no_sharpness:
        texts.append(f"Sharpness was not measured: {comparison.no_sharpness}.")
    ends = [s for s in comparison.settings if s[:2] == ("epochs", most)]
    if ends and most > least:
        like = next(s for s in comparison.settings if s[:2] == ("epochs", least))
        small = comparison.mean(like, "held_out")
        text = f"At equal epochs B = {most:,} ends held out at "
        text += f"{_joined(comparison, ends, 'held_out')}; B = {least:,} "
        ended = f"at {show_number(small.value)}" if small else ""
        text += ended or failures(comparison, like)
        updates = [comparison.mean(s, "updates") for s in (like, ends[0])]
        if updates[0] and updates[1]:
            ratio = updates[0].value / updates[1].value
            text += f", after {ratio:.3g} x as many updates"
        texts.append(f"{text}.")
    return texts


def failures(comparison: Comparison, setting: Setting) -> str:
    """Such as "2 diverged"; empty where all came to the end."""
    ends = [run.end for run in comparison.of(setting) if run.end != "done"]
    return ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))


def plus_minus(difference: Estimate | None) -> str:
    """A difference with half its interval, which is alike on both sides."""
    if difference is None:
        return ""
    half = f" ± {difference.high - difference.value:.2g}" if difference.bounded else ""
    return f"{difference.value:+.2g}{half}"


def table(comparison: Comparison) -> list[str]:
    """Every setting in 80 columns, budget by budget."""
    lines, budget = [], None
    for setting in comparison.settings:
        if setting[0] != budget:
            budget = setting[0]
            lines.append(
                f"\n {TITLES[budget]}\n{'B':>7} {'rate':<9} {'lr':>7} {'updates':>7} "
                f"{'train':>7} {'held out':>8} {'wobble':>7}  "
                f"against B = {comparison.smallest:,}"
            )
        cells = [
            f"{_shown(comparison, setting, name):>{width}}"
            for name, width in (
                ("lr", 7),
                ("updates", 7),
                ("train_loss", 7),
                ("held_out", 8),
                ("fluctuation", 7),
            )
        ]
        difference, runs = comparison.difference(setting), comparison.of(setting)
        last = plus_minus(difference)
        if any(run.end != "done" for run in runs):
            last += f" n={difference.n}" if difference else "none came there"
        line = f"{setting[1]:>7,} {setting[2]:<9.9} {' '.join(cells)}  {last}"
        lines.append(line.rstrip())
    return lines


def _joined(comparison: Comparison, settings: list[Setting], name: str = "") -> str:
    """A number of each setting, or its difference from the smallest batch."""
    parts = []
    for setting in settings:
        failed, value = failures(comparison, setting), ""
        if name and (mean := comparison.mean(setting, name)):
            value = show_number(mean.value)
        elif not name and (difference := comparison.difference(setting)):
            value = str(difference) if difference.bounded else plus_minus(difference)
        said = ", ".join(filter(None, [value, failed])) or "no pair"
        parts.append(f"{said} with {rate_words(setting[2])}")
    return "; ".join(parts)


def _shown(comparison: Comparison, setting: Setting, name: str) -> str:
    mean = comparison.mean(setting, name)
    return "-" if mean is None else show_number(mean.value)
