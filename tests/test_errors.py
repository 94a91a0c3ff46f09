"""Errors survive pickling, which carries them from workers, and say fact, value and remedy."""

from __future__ import annotations

import inspect
import pickle

import pytest

from llm import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.TrainyardError)]


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_everything(kind: type[errors.TrainyardError]) -> None:
    before = kind("disk is full", value="0 bytes", remedy="run `trainyard gc`", transient=not kind.transient)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is kind
    assert str(after) == str(before) == "disk is full: 0 bytes; run `trainyard gc`"
    assert (after.fact, after.value, after.remedy, after.transient) == (before.fact, before.value, before.remedy, not kind.transient)


def test_the_drawn_tree_is_complete() -> None:
    assert {kind.__name__ for kind in KINDS} == {kind.__name__ for kind in KINDS if kind.__name__ in str(errors.__doc__)}
