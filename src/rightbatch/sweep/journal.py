"""The trials of a study in one Optuna journal, which several workers share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rightbatch.core.errors import MissingExtraError, RunFolderError
from rightbatch.core.json_io import MISREAD, from_plain, to_plain
from rightbatch.measure.measurements import Lane

try:
    import optuna
    from optuna.storages import JournalStorage, journal
    from optuna.trial import TrialState
except ImportError as error:
    raise MissingExtraError(
        "a study keeps its trials with Optuna", fix="pip install 'rightbatch[optuna]'"
    ) from error

LANE, WORKER, REPEAT = "lane", "worker", "repeat"  # what is kept with a trial
OVER = (TrialState.COMPLETE, TrialState.PRUNED)
SPACE = {
    "batch_size": optuna.distributions.IntDistribution(1, 2**40, log=True),
    "lr": optuna.distributions.FloatDistribution(1e-30, 1e30, log=True),
}
Propose = Callable[[tuple[Lane, ...], int], tuple[int, float]]


class _Proposals(optuna.samplers.BaseSampler):
    """Optuna's sampler is whatever proposes batch and rate together."""

    def __init__(self, propose: Propose, lanes: Callable[[], tuple[Lane, ...]]) -> None:
        self._propose, self._lanes = propose, lanes

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return SPACE

    def sample_relative(self, study: Any, trial: Any, space: Any) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:  # it is known what is to be tried
            return {}
        return dict(zip(SPACE, self._propose(self._lanes(), trial.number), strict=True))

    def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> Any:
        raise AssertionError(f"every trial has its {name} before")


class Journal:
    """Trials that wait, are under way or over; each is one lane of a race.

    Args:
        path: The file; made if there is none.
        propose: Batch and rate of a trial that nothing was said of, from the lanes that
            are over and its number; None where nobody will `ask`.

    Raises:
        RunFolderError: The file is no journal, or damaged.
    """

    def __init__(self, path: Path, propose: Propose | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(journal.JournalFileBackend(str(path))),
                study_name="rightbatch",
                load_if_exists=True,
                sampler=propose and _Proposals(propose, lambda: self.lanes),
            )
            _ = self.lanes
        except MISREAD as error:
            raise RunFolderError(
                f"{path} is damaged, or no journal of a study",
                seen=f"{type(error).__name__}: {error}"[:200],
                fix="the file as it was written, or another --out",
            ) from error

    def _trials(self, *states: Any) -> list[Any]:
        return self._study.get_trials(deepcopy=False, states=states)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Of the trials that are over, in the order in which they were begun."""
        over = self._trials(*OVER)
        return tuple(from_plain(Lane, trial.user_attrs[LANE]) for trial in over)

    @property
    def begun(self) -> int:
        """How many trials are over or under way."""
        return len(self._trials(*OVER, TrialState.RUNNING))

    def add(self, batch_size: int, lr: float) -> None:
        """A setting to be tried before anything is proposed, once for all."""
        params = {"batch_size": batch_size, "lr": lr}
        self._study.enqueue_trial(params, skip_if_exists=True)

    def ask(self, worker: str) -> tuple[Any, int]:
        """Begin a trial; and which repeat of its batch and rate it is, from 0.

        That is the first that no other has: one that is taken up again after later
        ones is no copy of them.
        """
        trial = self._study.ask(SPACE)
        trial.set_user_attr(WORKER, worker)
        taken = {
            t.user_attrs.get(REPEAT)
            for t in self._trials(*OVER, TrialState.RUNNING)
            if t.params == trial.params
        }
        repeat = next(number for number in itertools.count() if number not in taken)
        trial.set_user_attr(REPEAT, repeat)
        return trial, repeat

    def tell(self, trial: Any, lane: Lane) -> None:
        """End a trial by what came of it: where it met the target, its seconds."""
        trial.set_user_attr(LANE, to_plain(lane))
        met = lane.end == "target"
        self._study.tell(
            trial,
            lane.seconds if met else None,
            state=None if met else TrialState.PRUNED,
        )

    def take_back(self, worker: str | None = None) -> int:
        """Let trials wait again that were begun and not ended; how many there are.

        Args:
            worker: Only its own; None for all. It is known to be gone.
        """
        left = [
            trial
            for trial in self._trials(TrialState.RUNNING)
            if worker is None or trial.user_attrs.get(WORKER) == worker
        ]
        for trial in left:
            params = trial.system_attrs.get("fixed_params", {}) | trial.params
            if len(params) == len(SPACE):  # else it had not been proposed yet
                self._study.enqueue_trial(params)
            self._study.tell(trial.number, state=TrialState.FAIL)  # kept above, so last
        return len(left)
