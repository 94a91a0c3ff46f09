"""Every verdict follows from numbers and state alone, bad numbers leave no trace, and no run goes round for ever."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import DivergenceError
from llm.train.config import GuardConfig
from llm.train.guard import Action, Guard, Verdict, skip_record

ROWS, CHECKPOINT_STEPS = 4, 5
CONFIG = GuardConfig(window_steps=8, patience_steps=3, max_rollbacks=2)
BAD = [(math.nan, 1.0), (1.0, math.inf), (math.inf, math.nan), (1e6, 1.0), (1.0, 1e9)]

Numbers = Callable[[int], tuple[float, float]]  # loss and gradient norm of the rows that begin at this place


@dataclass
class Run:
    """A loop without a model: it applies, skips and rolls back as told, and can be killed at any moment."""

    numbers: Numbers
    steps: int
    checkpoint: str = json.dumps({"history": [], "guard": None})
    seen: int = 0
    history: list[list[int | str]] = field(default_factory=list)  # step, place, action

    def train(self, kills: Sequence[int] = ()) -> list[list[int | str]]:
        """The history that the run ends with; it is killed when it has seen so many steps."""
        self.restart()
        while len(self.history) < self.steps:
            step = len(self.history) + 1
            place = (step - 1) * ROWS + self.guard.skipped_rows
            verdict = self.guard.judge(step, *self.numbers(place))
            self.seen += 1
            if self.seen in kills:
                self.restart()
                continue
            if verdict.action is Action.ROLL_BACK:
                self.roll_back(step)
                continue
            self.history.append([step, place, verdict.action.value])
            if step % CHECKPOINT_STEPS == 0 and self.guard.healthy:
                self.checkpoint = json.dumps({"history": self.history, "guard": self.guard.state})
        return self.history

    def restart(self) -> None:
        saved = json.loads(self.checkpoint)
        self.history, self.guard = saved["history"], Guard(CONFIG, saved["guard"])

    def roll_back(self, step: int) -> None:
        saved = json.loads(self.checkpoint)
        self.history = saved["history"]
        self.guard = self.guard.rolled_back(saved["guard"], rows=(step - len(self.history)) * ROWS)


def healthy(place: int) -> tuple[float, float]:
    random = np.random.default_rng(place)
    return 3.0 + 0.05 * random.standard_normal(), math.exp(0.2 * random.standard_normal())


def faulty(bad: dict[int, tuple[float, float]]) -> Numbers:
    """Healthy but for the rows at these steps' places."""
    return lambda place: bad.get(place // ROWS + 1) or healthy(place)


def verdicts(guard: Guard, numbers: Sequence[tuple[float, float]], first: int = 1) -> list[Verdict]:
    return [guard.judge(step, loss, norm) for step, (loss, norm) in enumerate(numbers, start=first)]


@pytest.mark.parametrize("numbers", BAD)
def test_an_unhealthy_step_is_skipped_and_leaves_no_trace(numbers: tuple[float, float]) -> None:
    guard, undisturbed = Guard(CONFIG), Guard(CONFIG)
    for each in (guard, undisturbed):
        assert {verdict.action for verdict in verdicts(each, [healthy(place) for place in range(20)])} == {Action.APPLY}
    verdict = guard.judge(21, *numbers)
    assert verdict.action is Action.SKIP
    assert verdict.reason
    assert not guard.healthy
    for each in (guard, undisturbed):
        each.judge(22, *healthy(22))
    assert guard.state | {"best_step": 0} == undisturbed.state | {"best_step": 0}


def test_a_spike_is_measured_in_robust_deviations() -> None:
    """Against numpy's median and MAD of the window."""
    window = [healthy(place) for place in range(8)]
    logs = np.log([norm for _, norm in window])
    limit = np.median(logs) + CONFIG.spike_deviations * 1.4826 * np.median(np.abs(logs - np.median(logs)))
    for factor, action in ((0.999, Action.APPLY), (1.001, Action.SKIP)):
        guard = Guard(CONFIG)
        verdicts(guard, window)
        assert guard.judge(9, 3.0, math.exp(limit) * factor).action is action


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert {verdict.action for verdict in verdicts(Guard(CONFIG), [(1.0, 1.0), (1e6, 1e9), (1.0, 1e-9)] * 2)} == {Action.APPLY}


def test_a_run_that_skips_reads_on_and_ends() -> None:
    history = Run(faulty({12: (math.nan, 1.0)}), steps=20).train()
    assert [action for _, _, action in history].count("skip") == 1
    assert [place for _, place, _ in history] == [ROWS * number for number in range(20)]


def test_a_rolled_back_run_reads_behind_the_rows_that_failed() -> None:
    """Steps 12 to 14 fail: steps 11 on are done again from the checkpoint of step 10, with the rows behind step 14."""
    history = Run(faulty(dict.fromkeys((12, 13, 14), (math.nan, math.nan))), steps=20).train()
    assert {action for _, _, action in history} == {"apply"}
    assert [place // ROWS for _, place, _ in history] == [*range(10), *range(14, 24)]


def test_steps_that_are_not_judged_cost_no_patience() -> None:
    """As those at which float16 ran over: steps 9, 15 and 40 are the three that end a patience of three."""
    guard = Guard(CONFIG)
    verdicts(guard, [healthy(place) for place in range(8)])
    assert [guard.judge(step, math.nan, 1.0).action for step in (9, 15, 40)] == [Action.SKIP, Action.SKIP, Action.ROLL_BACK]
    assert guard.state["unhealthy_since"] == 9


def test_rows_that_always_fail_end_the_run_with_its_first_bad_step() -> None:
    run = Run(lambda place: healthy(place) if place < 12 * ROWS else (math.nan, 1.0), steps=1000)
    with pytest.raises(DivergenceError, match=r"diverged at step 11: loss nan.*after 2 returns.*learning_rate lower"):
        run.train()
    assert run.seen < 12 + 3 * (CONFIG.max_rollbacks + 1) + CHECKPOINT_STEPS


def outcome(run: Run, kills: Sequence[int]) -> object:
    try:
        return run.train(kills)
    except DivergenceError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(
    bad=st.dictionaries(st.integers(1, 60), st.sampled_from(BAD), max_size=25),
    burst=st.integers(1, 60),
    kills=st.sets(st.integers(1, 80), max_size=6),
)
def test_a_run_killed_at_any_moment_decides_as_one_that_was_not(bad: dict[int, tuple[float, float]], burst: int, kills: set[int]) -> None:
    numbers = faulty(bad | dict.fromkeys(range(burst, burst + 3), (math.nan, math.nan)))
    whole = Run(numbers, steps=40)
    expected = outcome(whole, [])
    assert whole.seen <= (CONFIG.max_rollbacks + 1) * 40
    assert outcome(Run(numbers, steps=40), sorted(kills)) == expected


def test_rising_losses_alert_once() -> None:
    guard = Guard(GuardConfig(window_steps=16, spike_deviations=1e9))
    calm = verdicts(guard, [healthy(place) for place in range(40)])
    rising = verdicts(guard, [(3.0 + 0.1 * step, 1.0) for step in range(20)], first=41)
    assert [alert for verdict in calm for alert in verdict.alerts] == []
    assert [alert for verdict in rising for alert in verdict.alerts] == ["loss rises"]


def test_a_plateau_alerts_once_and_again_after_it_was_left() -> None:
    guard = Guard(CONFIG.model_copy(update={"plateau_steps": 10}))
    falls = [(3.0 - step / 64, 1.0) for step in range(1, 21)]
    losses = [*falls, *[(2.625, 1.0)] * 30, *[(2.5, 1.0)] * 30]
    steps = [step for step, verdict in enumerate(verdicts(guard, losses), start=1) if verdict.alerts]
    assert steps == [38, 68]  # the mean of 8 losses is best at steps 28 and 58


def test_the_state_is_json_and_survives_it() -> None:
    guard = Guard(CONFIG)
    verdicts(guard, [healthy(place) for place in range(12)])
    assert Guard(CONFIG, json.loads(json.dumps(guard.state, allow_nan=False))).state == guard.state


def test_a_skipped_step_is_logged_with_its_rows_and_without_nan() -> None:
    record = skip_record(3, Guard(CONFIG).judge(3, math.nan, 2.0), math.nan, 2.0, np.array([5, 9]))
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "step": 3,
        "action": "skip",
        "reason": "loss nan, gradient norm 2",
        "rows": [5, 9],
        "grad_norm": 2.0,
    }
