"""Retries by error class: what time may heal is tried again, what needs a person is not."""

from __future__ import annotations

import asyncio
import errno
import pickle
from typing import Any, cast

import pytest
from prefect.states import exception_to_failed_state
from ray.exceptions import RayActorError

from llm import errors
from tasks.policy import HOURS, policy, time_may_heal

HEALED = [
    (errors.TrainyardError, False),
    (errors.RecipeError, False),
    (errors.SourceError, True),
    (errors.DataError, False),
    (errors.ArtifactError, False),
    (errors.DivergenceError, False),
    (errors.StoppedError, False),
    (errors.CapacityError, False),
    (errors.DependencyError, False),
    (errors.PromotionError, False),
]


def retried(error: BaseException) -> bool:
    """What the policy says of a task that failed with this error, as Prefect hands it over."""
    state = asyncio.run(exception_to_failed_state(error))
    return time_may_heal(cast(Any, None), cast(Any, None), state)


def test_the_table_names_every_error_class() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TrainyardError)}
    assert kinds == {kind for kind, _ in HEALED}


@pytest.mark.parametrize(("kind", "expected"), HEALED)
def test_each_error_class_has_its_answer(kind: type[errors.TrainyardError], expected: bool) -> None:
    assert retried(kind("fact", value=1, remedy="remedy")) is expected


@pytest.mark.parametrize("kind", [kind for kind, _ in HEALED])
@pytest.mark.parametrize("transient", [True, False])
def test_an_error_may_say_that_it_is_otherwise(kind: type[errors.TrainyardError], transient: bool) -> None:
    assert retried(kind("training lost its workers", transient=transient)) is transient


def test_an_error_from_another_process_keeps_its_answer() -> None:
    lost = errors.CapacityError("training lost its workers", transient=True)
    assert retried(pickle.loads(pickle.dumps(lost)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), True),
        (TimeoutError(), True),
        (OSError(errno.EIO, "input/output error"), True),
        (OSError(errno.ETIMEDOUT, "timed out"), True),
        (RayActorError(), True),
        (ValueError("no"), False),
        (KeyError("no"), False),
        (AssertionError("no"), False),
        (MemoryError(), False),
        (RuntimeError("no"), False),
    ],
    ids=repr,
)
def test_errors_of_others(error: BaseException, expected: bool) -> None:
    assert retried(error) is expected


@pytest.mark.parametrize("stage", HOURS)
def test_every_stage_is_retried_under_the_policy_and_ends(stage: str) -> None:
    options = policy(stage)
    assert options["retry_condition_fn"] is time_may_heal
    assert options["retries"] >= 1
    assert options["timeout_seconds"] > 0
