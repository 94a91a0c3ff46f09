"""Which steps are applied, and what follows those that are not.

A step whose loss or gradient isn't finite, or stands far above those before it, is skipped: the weights stay as they
were, and no number of it is ever compared with. After `patience_steps` skips in a row the run goes back to its newest
checkpoint and reads on behind the rows that failed; after `max_rollbacks` of that it stops. A guard decides from the
numbers of the steps and its own state alone, so a run that continues from a checkpoint decides as an uninterrupted one.

    guard = Guard(config, progress.get("guard"))
    first = rows_before(step) + guard.skipped_rows          # where the step stands in the sample stream
    verdict = guard.judge(step, loss, norm)                 # on every worker alike: both numbers are totals
    guard = guard.rolled_back(checkpoint["guard"], rows)    # where verdict.action is ROLL_BACK

Source: skipping the data around a spike from an earlier checkpoint is section 5.1 of PaLM, https://arxiv.org/abs/2204.02311.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from llm.errors import DivergenceError
from llm.train.config import GuardConfig

MAD_TO_DEVIATION = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
SMALLEST_DEVIATIONS = {"loss": 0.02, "log gradient norm": 0.1}  # a calm stretch doesn't make every wobble a spike
RISE_DEVIATIONS = 5.0  # standard errors by which a half window of losses stands above the one before it


class Action(Enum):
    """What the loop does with a step."""

    APPLY = "apply"
    SKIP = "skip"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Verdict:
    """On one step: what to do, why not to apply it, and the alerts that begin with it."""

    action: Action
    reason: str = ""
    alerts: tuple[str, ...] = ()


@dataclass
class State:
    """All that a guard knows; JSON values only, for it lies in every checkpoint."""

    losses: list[float] = field(default_factory=list)  # of the last `window_steps` applied steps
    log_norms: list[float] = field(default_factory=list)
    unhealthy_since: int | None = None  # first of the steps in a row that were refused
    refused: int = 0  # how many these are: steps at which float16 ran over lie between them and aren't judged
    rollbacks: int = 0
    skipped_rows: int = 0  # how far the sample stream runs ahead of the steps
    best_loss: float | None = None  # smoothed
    best_step: int = 0
    alerts: list[str] = field(default_factory=list)  # that hold now


class Guard:
    """The judge of one run's steps."""

    def __init__(self, config: GuardConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config, self._state = config, State(**(state or {}))

    @property
    def state(self) -> dict[str, Any]:
        """What `Guard(config, state)` goes on from, as JSON values."""
        return asdict(self._state)

    @property
    def healthy(self) -> bool:
        """Whether the last step was applied; a checkpoint of any other moment is no place to go back to."""
        return self._state.unhealthy_since is None

    @property
    def skipped_rows(self) -> int:
        """What to add to a step's place in the sample stream."""
        return self._state.skipped_rows

    def judge(self, step: int, loss: float, norm: float) -> Verdict:
        """Whether a step with this loss and gradient norm is applied; `step` follows the step judged before.

        Raises: DivergenceError when the run would go back once more than `max_rollbacks` times.
        """
        if reason := self._fault(loss, norm):
            return self._refuse(step, reason)
        state, window = self._state, self.config.window_steps
        state.unhealthy_since, state.refused = None, 0
        state.losses = [*state.losses, loss][-window:]
        state.log_norms = [*state.log_norms, _log(norm)][-window:]
        return Verdict(Action.APPLY, alerts=self._alerts(step))

    def rolled_back(self, checkpoint: Mapping[str, Any] | None, rows: int) -> Guard:
        """The guard with which a run goes on from a checkpoint that holds this state, None from its start.

        `rows` is the number of rows from the checkpoint to the end of the failed step: the next step reads behind them.
        """
        earlier = Guard(self.config, checkpoint)
        earlier._state.unhealthy_since, earlier._state.refused = None, 0
        earlier._state.rollbacks = self._state.rollbacks + 1
        earlier._state.skipped_rows = self._state.skipped_rows + rows
        return earlier

    def _fault(self, loss: float, norm: float) -> str:
        """What is wrong with a step; empty if nothing is."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss:.6g}, gradient norm {norm:.6g}"
        measured = {"loss": (loss, self._state.losses), "log gradient norm": (_log(norm), self._state.log_norms)}
        limits = {name: self._highest(window, SMALLEST_DEVIATIONS[name]) for name, (_, window) in measured.items()}
        return ", ".join(f"{name} {value:.6g} above {limits[name]:.6g}" for name, (value, _) in measured.items() if value > limits[name])

    def _highest(self, window: Sequence[float], smallest_deviation: float) -> float:
        """The largest healthy number: so many robust deviations above the median; any, until the window is full."""
        if len(window) < self.config.window_steps:
            return math.inf
        middle = float(np.median(window))
        deviation = MAD_TO_DEVIATION * float(np.median(np.abs(np.array(window) - middle)))
        return middle + self.config.spike_deviations * max(deviation, smallest_deviation)

    def _refuse(self, step: int, reason: str) -> Verdict:
        state = self._state
        first = state.unhealthy_since = state.unhealthy_since or step
        state.refused += 1
        if state.refused < self.config.patience_steps:
            return Verdict(Action.SKIP, reason)
        if state.rollbacks < self.config.max_rollbacks:
            return Verdict(Action.ROLL_BACK, reason)
        raise DivergenceError(
            f"training diverged at step {first}",
            value=f"{reason}; {state.refused} steps in a row, after {state.rollbacks} returns to a checkpoint",
            remedy="set train.optimizer.muon_learning_rate and adamw_learning_rate lower, or train.schedule.warmup_steps higher",
        )

    def _alerts(self, step: int) -> tuple[str, ...]:
        """What begins to look wrong with this step, though each single step is healthy."""
        state, config = self._state, self.config
        smoothed = float(np.mean(state.losses))
        if state.best_loss is None or smoothed < state.best_loss:
            state.best_loss, state.best_step = smoothed, step
        holding = []
        if len(state.losses) == config.window_steps and _rise(state.losses) > RISE_DEVIATIONS:
            holding.append("loss rises")
        if config.plateau_steps and step - state.best_step >= config.plateau_steps:
            holding.append("loss has reached a plateau")
        beginning = tuple(alert for alert in holding if alert not in state.alerts)
        state.alerts = holding
        return beginning


def skip_record(step: int, verdict: Verdict, loss: float, norm: float, rows: Sequence[int]) -> dict[str, Any]:
    """What the logs say of a step that was not applied: the reason and its rows, and only numbers that JSON knows."""
    finite = {name: value for name, value in (("loss", loss), ("grad_norm", norm)) if math.isfinite(value)}
    return {"step": step, "action": verdict.action.value, "reason": verdict.reason, "rows": [int(row) for row in rows], **finite}


def _log(norm: float) -> float:
    """Finite even for a gradient of zeros."""
    return math.log(max(norm, 1e-30))


def _rise(losses: Sequence[float]) -> float:
    """Standard errors by which the mean of the newer half exceeds that of the older one (Welch's t)."""
    older, newer = np.split(np.array(losses), [len(losses) // 2])
    error = math.sqrt(older.var(ddof=1) / len(older) + newer.var(ddof=1) / len(newer))
    return float(newer.mean() - older.mean()) / max(error, 1e-12)
