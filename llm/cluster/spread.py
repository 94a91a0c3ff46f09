"""A map over pieces on the machines of a Ray cluster: what a lost machine was working on is done again elsewhere."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from llm.artifact import sha256_of
from llm.code import code_digests
from llm.errors import CapacityError, DependencyError, TrainyardError

PIECES_PER_CORE = 2  # given out ahead, so that no core waits; more would only lie in Ray's queue
RETRIES = 10  # of a piece whose machine was lost


def on_ray(function: Callable[[Any], Any], items: Sequence[Any], *, code: tuple[str, ...]) -> Iterator[Any]:
    """`function` of every item, computed one per core of the connected cluster; results as they come.

    `code` names the modules that hold the function: every machine must have the driver's version of them.

    Raises: what `function` raises, as it was raised; DependencyError if a machine runs other code;
    CapacityError if a piece loses its machine too often.
    """
    call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
    shared, digest = ray.put(function), _digest(code)
    waiting, given = deque(items), list[Any]()
    while waiting or given:
        while waiting and len(given) < PIECES_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1))):
            given.append(call.remote(shared, waiting.popleft(), code, digest))
        ready, given = ray.wait(given)
        yield from map(_result, ready)


def _call(function: Callable[[Any], Any], item: Any, code: tuple[str, ...], digest: str) -> Any:
    if (found := _digest(code)) != digest:
        raise DependencyError(
            "a machine runs other code than the driver",
            value=f"{found[:12]} instead of {digest[:12]}",
            remedy="install the same Trainyard on all machines",
        )
    return function(item)


@functools.cache
def _digest(code: tuple[str, ...]) -> str:
    return sha256_of(code_digests(*code))


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TrainyardError):
            raise error.cause from error
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise CapacityError(
            "a piece of the data lost its worker too often",
            value=type(error).__name__,
            remedy="give the machines more memory, or set cluster.workers lower",
            transient=True,
        ) from error
