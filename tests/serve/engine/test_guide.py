"""Answers of a form: whatever the model would like to say, what it says has it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from llm.errors import RecipeError
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Guide, Sampling

AGES = {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 3}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ages": AGES},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


def answer(engine: Engine, guide: Guide, seed: int, max_tokens: int = 300) -> tuple[str, str | None]:
    generation = engine.submit([1, 50, 60], Sampling(max_tokens, seed=seed, guide=guide))
    return "".join(chunk.text for chunk in generation), generation.finish_reason


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_followed(served: Engine, seed: int) -> None:
    text, reason = answer(served, Guide(json_schema=SCHEMA), seed)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert reason == "stop"


@pytest.mark.parametrize("regex", [r"[a-f]{3}-\d+(\.\d)?é", r"(yes|no)", "🙂{2}"])
def test_a_regular_expression_is_followed(served: Engine, regex: str) -> None:
    for seed in range(3):
        text, reason = answer(served, Guide(regex=regex), seed)
        assert re.fullmatch(regex, text) or reason == "length"
        assert reason == "stop"


def test_forms_of_a_batch_dont_mix(served: Engine) -> None:
    guides = [Guide(regex=r"a{20}"), None, Guide(regex=r"b{20}")]
    running = [served.submit([1, 50], Sampling(40, seed=3, guide=guide)) for guide in guides]
    texts = ["".join(chunk.text for chunk in generation) for generation in running]
    assert (texts[0], texts[2]) == ("a" * 20, "b" * 20)


def test_a_form_that_fails_in_the_middle_fails_its_text_alone(decoder: Any) -> None:
    """A text cut off by llguidance must not look like a finished one."""
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=2))
    blocking = [engine.submit([7], Sampling(400, ignore_eos=True)) for _ in range(2)]
    while engine.load().running < 2:
        time.sleep(0.002)
    failing, good = (engine.submit([1, 50], Sampling(40, seed=3, guide=Guide(regex="a{20}"))) for _ in range(2))
    assert failing.matcher
    with pytest.raises(RecipeError, match="to its end"):
        failing.matcher.take(engine.pieces.index(b"b"))
    for each in blocking:
        each.cancel()
    with pytest.raises(RecipeError, match="to its end"):
        list(failing)
    assert "".join(chunk.text for chunk in good) == "a" * 20
    assert good.finish_reason == "stop"
    engine.close()


@pytest.mark.parametrize(
    "guide",
    [Guide(regex="(a"), Guide(json_schema={"type": "nonsense"}), Guide(json_schema={"$ref": "#/nowhere"})],
)
def test_a_form_that_cannot_be_followed_is_refused(served: Engine, guide: Guide) -> None:
    with pytest.raises(RecipeError, match="form can't be followed"):
        served.submit([1], Sampling(5, guide=guide))
