"""Whatever is wrong with a request, the answer is OpenAI's error object, names the part, and the server lives."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from llm.serve.endpoint.requests import ChatRequest
from llm.serve.endpoint.strict_json import MAX_DEPTH

QUESTION: Any = [{"role": "user", "content": "what is it?"}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nothing"}}}
NO_WAY_ON: Any = {"structured_outputs": {"regex": "a{0}"}, "ignore_eos": True, "max_tokens": 9}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": value}
    return value


BAD: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    # unknown, missing, unsupported
    (COMPLETIONS, {"prompt": "x", "model": "other"}, 404, "model", "'small'"),
    (COMPLETIONS, {}, 400, "prompt", "required"),
    (COMPLETIONS, {"prompt": "x", "temprature": 1}, 400, "temprature", "did you mean temperature?"),
    (COMPLETIONS, {"prompt": "x", "zzz": 1}, 400, "zzz", "unknown parameter"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, 400, "suffix", "not supported"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {"include_usag": True}, "stream": True}, 400, "include_usag", "mean include_usage?"),
    (CHAT, {"messages": QUESTION, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    (CHAT, {"messages": QUESTION, "tool_choice": "required"}, 400, "tool_choice", "not supported"),
    (CHAT, {"messages": QUESTION, "chat_template_kwargs": {}}, 400, "chat_template_kwargs", "unknown parameter"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "contents": "y"}]}, 400, "contents", "did you mean content?"),
    # malformed
    (COMPLETIONS, {"prompt": "x", "temperature": "1"}, 400, "temperature", "number"),
    (COMPLETIONS, {"prompt": "x", "temperature": -1}, 400, "temperature", "greater"),
    (COMPLETIONS, {"prompt": "x", "n": True}, 400, "n", "integer"),
    (COMPLETIONS, {"prompt": "x", "n": 9}, 400, "n", "less"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens", "integer"),
    (COMPLETIONS, {"prompt": "x", "stop": ["a", ""]}, 400, "stop.1", "at least 1"),
    (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 17}, 400, "stop", "at most 16"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, 400, "logprobs", "less"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"600": 1}}, 400, "logit_bias", "0 to 599"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias.a.[key]", "pattern"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {str(id): 1 for id in range(301)}}, 400, "logit_bias", "at most 300"),
    (COMPLETIONS, {"prompt": [600]}, 400, "prompt", "0 to 599"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt", "0 to 599"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt", "text"),
    (COMPLETIONS, {"prompt": [[]]}, 400, "prompt", "text"),
    (COMPLETIONS, {"prompt": ["x", 1]}, 400, "prompt", "text"),
    (COMPLETIONS, {"prompt": [1, "x"]}, 400, "prompt", "text"),
    (COMPLETIONS, {"prompt": {"secret": "x"}}, 400, "prompt", "text"),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": "("}}, 400, "structured_outputs", ""),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": "x" * 2_049}}, 400, "structured_outputs.regex", "at most"),
    (CHAT, {"messages": []}, 400, "messages", "at least 1"),
    (CHAT, {"messages": "hello"}, 400, "messages", "list"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "'user'"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content.0.type", "text"),
    (CHAT, {"messages": QUESTION + QUESTION}, 400, "messages", "take turns"),
    (CHAT, {"messages": QUESTION, "response_format": SCHEMA}, 400, "response_format", ""),
    (CHAT, {"messages": QUESTION, "response_format": {"type": "xml"}}, 400, "response_format.type", "json_schema"),
    # contradictory
    (COMPLETIONS, {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options", "needs stream"),
    (COMPLETIONS, {"prompt": "x", "n": 3, "best_of": 2}, 400, "best_of", "less than n"),
    (COMPLETIONS, {"prompt": "x", "best_of": 2, "stream": True}, 400, "best_of", "can't be streamed"),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": "x", "json": {}}}, 400, "structured_outputs", "exactly one"),
    (CHAT, {"messages": QUESTION, "max_tokens": 1, "max_completion_tokens": 2}, 400, "max_completion_tokens", "differ"),
    (COMPLETIONS, {"prompt": "x", "beams": 2, "n": 2}, 400, "beams", "one text"),
    (COMPLETIONS, {"prompt": "x", "beams": 2, "presence_penalty": 1}, 400, "beams", "with presence_penalty"),
    (COMPLETIONS, {"prompt": "x", "beams": 2, "seed": 1, "top_p": 0.5, "logprobs": 1}, 400, "beams", "with top_p, seed, logprobs"),
    (CHAT, {"messages": QUESTION, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
    (CHAT, {"messages": QUESTION, "response_format": {"type": "json_schema"}}, 400, "response_format", "json_schema is given"),
    (COMPLETIONS, {"prompt": "x", **NO_WAY_ON}, 400, "structured_outputs", "let the text end"),
    # too long, too many, too deep
    (COMPLETIONS, {"prompt": "x", "max_tokens": 5_000}, 400, "max_tokens", "the context is 4000 tokens"),
    (COMPLETIONS, {"prompt": [7] * 4_001, "max_tokens": 1}, 400, "prompt", "the context is 4000 tokens"),
    (COMPLETIONS, {"prompt": "x" * 200_000}, 400, "prompt", "longer than the context"),
    (COMPLETIONS, {"prompt": ["x"] * 33, "n": 2}, 400, "n", "64 texts"),
    (COMPLETIONS, {"prompt": "x" * 1_100_000}, 413, None, "1048576 bytes"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 200_000}]}, 400, "messages", "longer than the context"),
    (CHAT, {"messages": QUESTION, "structured_outputs": {"json": nested(MAX_DEPTH)}}, 400, None, "deeper"),
    (CHAT, {"messages": QUESTION, "structured_outputs": {"json": {"const": "x" * 40_000}}}, 400, "structured_outputs", "characters"),
    # other routes
    ("/v1/embeddings", {"input": "x", "model": "other"}, 404, "model", "'small'"),
    ("/v1/embeddings", {"input": "x", "dimensions": 3}, 400, "dimensions", "dimensions"),
    ("/v1/embeddings", {"input": [7] * 4_001}, 400, "input", "the context is 4000 tokens"),
    ("/v1/embeddings", {"input": ["x"] * 257}, 400, "input", "256"),
    ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, 400, "encoding_format", "'float'"),
    ("/tokenize", {"prompt": "x", "messages": QUESTION}, 400, "prompt", "prompt or messages"),
    ("/tokenize", {"messages": QUESTION * 2_049}, 400, "messages", "at most 2048"),
    ("/tokenize", {"prompt": "x" * 200_000}, 400, "prompt", "longer than the context"),
    ("/detokenize", {"tokens": [600]}, 400, "tokens", "0 to 599"),
    ("/detokenize", {"tokens": [7] * (2**17 + 1)}, 400, "tokens", "at most 131072"),
    ("/detokenize", {"tokens": ["x"]}, 400, "tokens.0", "integer"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "message"), BAD)
def test_errors_are_objects_that_name_the_part(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    response = http.post(path, json={"model": "small"} | body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert response.headers["x-request-id"]
    assert http.get("/ready").status_code == 200


INFER: Any = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v2/models/small/infer", INFER | {"parameters": {"temperature": 9}}, 400, "parameters.temperature"),
        ("/v2/models/small/infer", INFER | {"parameters": {"stream": True}}, 400, "parameters.stream"),
        ("/v2/models/small/infer", INFER | {"parameters": {"temprature": 1}}, 400, "parameters.temprature"),
        ("/v2/models/small/infer", INFER | {"parameters": {"max_tokens": 5_000}}, 400, "parameters.max_tokens"),
        ("/v2/models/small/infer", INFER | {"parameters": {"beams": 2, "presence_penalty": 1}}, 400, "parameters.beams"),
        ("/v2/models/small/infer", {"inputs": [INFER["inputs"][0] | {"data": ["☃" * 2_000]}]}, 400, "inputs"),
        ("/v2/models/small/infer", {"inputs": [INFER["inputs"][0] | {"shape": [2]}]}, 400, "inputs"),
        ("/v2/models/small/infer", {"inputs": [INFER["inputs"][0] | {"shape": [1_025], "data": ["x"] * 1_025}]}, 400, "inputs.0.data"),
        ("/v2/models/small/infer", {"inputs": [INFER["inputs"][0] | {"datatype": "FP32"}]}, 400, "inputs.0.datatype"),
        ("/v2/models/other/infer", INFER, 404, "model"),
    ],
)
def test_kserve_errors_are_the_same_objects(http: httpx.Client, path: str, body: Any, status: int, param: str) -> None:
    response = http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models//etc/passwd", 404),
        ("GET", "/docs", 404),
    ],
)
def test_there_is_nothing_else(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"prompt": "secret words", ',
        b'{"model": "small", "prompt": "x", "prompt": "y"}',
        b'{"model": "small", "prompt": "x", "temperature": NaN}',
        b'{"model": "small", "prompt": "x", "temperature": 1e999}',
        b'{"model": "small", "prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        b'{"model": "small", "prompt": "\\ud800"}',
        b'{"model": "small", "prompt": "\xff"}',
        b'\xef\xbb\xbf{"model": "small", "prompt": "x"}',
        b"[" * 100_000,
        b'{"model": ' + b'{"a":' * 60 + b"1" + b"}" * 61,
    ],
)
def test_a_body_that_is_no_strict_json_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in response.text
    assert http.get("/ready").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_only_json_is_read(http: httpx.Client, kind: str) -> None:
    """A page elsewhere can send these types to a local server without asking the browser's permission."""
    response = http.post("/v1/completions", content=b'{"model": "small", "prompt": "x"}', headers={"content-type": kind})
    assert response.status_code == 415


def test_errors_repeat_nothing_that_was_sent(http: httpx.Client) -> None:
    for body in ({"prompt": {"secret": "words"}}, {"prompt": "x", "stop": {"secret": 1}}, {"prompt": "x", "temperature": "secret"}):
        assert "secret" not in http.post("/v1/completions", json={"model": "small"} | body).text


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(http: httpx.Client, declared: bool) -> None:
    content = json.dumps({"model": "small", "prompt": "x" * 1_100_000}).encode()
    parts = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
    response = http.post("/v1/completions", content=content if declared else parts, headers={"content-type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("settings", "limiting"),
    [
        ({"response_format": {"type": "json_object"}, "presence_penalty": 1}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "structured_outputs"),
        ({"frequency_penalty": 0, "presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"7": -100}, "ignore_eos": True}, "logit_bias"),
        ({"temperature": 2}, None),
    ],
)
def test_what_leaves_no_token_is_named(settings: dict[str, Any], limiting: str | None) -> None:
    assert ChatRequest.model_validate({"model": "small", "messages": QUESTION} | settings).limiting == limiting


def test_harmless_settings_are_accepted_and_null_means_default(http: httpx.Client) -> None:
    body = {"model": "small", "messages": QUESTION, "max_tokens": 2}
    body |= {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "tools": [], "tool_choice": "auto"}
    body |= {"temperature": None, "presence_penalty": 0.0, "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_full_context_has_its_own_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="small", prompt=[7] * 4_001, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_cannot_go_on_says_why(http: httpx.Client) -> None:
    text = http.post(COMPLETIONS, json={"model": "small", "prompt": "x", "stream": True, **NO_WAY_ON}).text
    last, done = text.strip().split("\n\n")[-2:]
    assert done == "data: [DONE]"
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "structured_outputs")
    assert "let the text end" in error["message"]
