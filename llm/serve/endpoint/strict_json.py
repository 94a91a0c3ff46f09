"""JSON that means one thing: no duplicate names, no NaN, no numbers or texts that other readers would change.

Source: I-JSON, RFC 7493; what parsers disagree on, https://bishopfox.com/blog/json-interoperability-vulnerabilities.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 32
LARGEST_INT = 2**63
TOO_DEEP = f"the body nests deeper than {MAX_DEPTH} levels"


def loads(body: bytes) -> Any:
    """The value that `body` writes.

    Raises: ValueError with a message that repeats nothing of the body.

    Example:
        >>> loads(b'{"n": 1, "n": 2}')
        Traceback (most recent call last):
        ValueError: a name occurs twice in one object
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_int, parse_float=_float)
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if "\\u" in text:
        _check_texts(value)
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_INT <= int(digits) < LARGEST_INT:
        raise ValueError("an integer has more than 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is larger than 64-bit floats hold")
    return value


def _check_texts(value: Any) -> None:
    """Half a surrogate pair can be escaped, but it is no character and can't be sent on."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text holds half a surrogate pair") from None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(TOO_DEEP)
