"""From a request to running generations, and from those to text: tokenised, checked, submitted, gathered or interleaved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm.data import template
from llm.errors import DataError, RecipeError
from llm.serve.endpoint.errors import ApiError, asked_for
from llm.serve.endpoint.requests import GenerationRequest
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Chunk, Generation, Scored
from llm.serve.models.served import Served


@dataclass(frozen=True)
class Submitted:
    """The generations of one request: for each prompt as many as there are candidates."""

    served: Served
    visit: Visit
    body: GenerationRequest
    prompts: list[list[int]]
    generations: list[Generation]
    citations: list[dict[str, Any]] | None = None  # of passages that the prompt quotes

    @property
    def engine(self) -> Engine:
        return self.served.engine

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, each prompt counted once whatever the number of candidates."""
        return sum(map(len, self.prompts))

    @property
    def cached_tokens(self) -> int:
        candidates = len(self.generations) // len(self.prompts)
        return sum(generation.cached_tokens for generation in self.generations[::candidates])

    @property
    def completion_tokens(self) -> int:
        return self.visit.record.completion_tokens


@dataclass(frozen=True)
class Written:
    """One finished text."""

    text: str
    tokens: list[Scored]
    finish_reason: str

    @property
    def mean_logprob(self) -> float:
        """By which the best of several is chosen."""
        return sum(token.logprob or 0.0 for token in self.tokens) / max(len(self.tokens), 1)


def prompt_ids(engine: Engine, prompt: str | list[int], *, param: str = "prompt") -> list[int]:
    """Text begins like a document; ids are taken as they are.

    Raises: ApiError for a text that can't fit, before it is tokenised, and for ids that aren't in the vocabulary.
    """
    if isinstance(prompt, str):
        check_length(engine, prompt, param=param)
        return [engine.tokenizer.bos, *engine.tokenizer.encode(prompt)]
    check_ids(engine, prompt, param=param)
    return prompt


def read_prompts(engine: Engine, visit: Visit, prompts: Sequence[str | list[int]], *, param: str = "prompt") -> list[list[int]]:
    """The ids of each prompt, tokenised for as long as somebody waits.

    Raises: ApiError as `prompt_ids` does; Over once the request has ended.
    """
    ids = list[list[int]]()
    for prompt in prompts:
        visit.cleanup.check()
        ids.append(prompt_ids(engine, prompt, param=param))
    return ids


def chat_ids(engine: Engine, messages: list[dict[str, str]]) -> list[int]:
    """Turns are opened and closed by ids, never by text, so that nobody can write one.

    Raises: ApiError if the messages don't take turns or can't fit.
    """
    check_length(engine, "".join(message["content"] for message in messages), param="messages")
    try:
        return template.prompt_ids(engine.tokenizer, template.turns(messages))
    except DataError as error:
        raise ApiError(400, asked_for(error), param="messages") from error


def check_length(engine: Engine, text: str, *, param: str) -> None:
    """Raises: ApiError for a text that is too long for the context even if every token were the longest there is."""
    if len(text) > engine.longest_piece_bytes * engine.facts.context_tokens:
        message = f"{param} is longer than the context of {engine.facts.context_tokens} tokens"
        raise ApiError(400, message, param=param, code="context_length_exceeded")


def check_ids(engine: Engine, ids: list[int], *, param: str) -> None:
    """Raises: ApiError for ids that aren't in the vocabulary."""
    if not all(0 <= id < engine.facts.vocab_size for id in ids):
        raise ApiError(400, f"token ids have to be from 0 to {engine.facts.vocab_size - 1}", param=param)


def start(
    service: Service,
    served: Served,
    visit: Visit,
    body: GenerationRequest,
    prompts: Sequence[str | list[int]],
    *,
    max_tokens: int | None,
    timeout_seconds: float | None = None,
    param: str = "prompt",
) -> Submitted:
    """Submit every candidate of every prompt; whatever becomes of the request, they end with it.

    Without `max_tokens`, a text may fill the context. `param` is where the request has its prompts.

    Raises: ApiError for what can't be served, and for too many texts before any is tokenised; CapacityError if the queue
    is full; Over once the request has ended.
    """
    engine, most = served.engine, service.settings.limits.choices
    if len(prompts) * body.candidates > most:
        raise ApiError(400, f"one request may have {most} texts written", param="n" if body.candidates > 1 else param)
    check_ids(engine, [int(id) for id in body.logit_bias], param="logit_bias")
    read = read_prompts(engine, visit, prompts, param=param)
    wanted = _wanted_tokens(engine, read, max_tokens, param=param)
    submitted = Submitted(served, visit, body, read, visit.record.generations)
    visit.record.prompt_tokens = submitted.prompt_tokens
    seconds, client = service.patience_seconds(timeout_seconds), visit.record.key or visit.client
    visit.cleanup.callback(lambda: _report(service, submitted, hurried=seconds < service.settings.limits.request_seconds))
    for prompt in read:
        for choice in range(body.candidates):
            sampling = body.sampling(max_tokens=wanted, choice=choice)
            with _refused(body, param):
                generation = engine.submit(prompt, sampling, top=body.top, deadline_seconds=seconds, client=client)
            submitted.generations.append(generation)
            visit.cleanup.callback(generation.cancel)
        service.catalogue.mirror(served, prompt, sampling, key=visit.record.id)
    return submitted


@contextmanager
def _refused(body: GenerationRequest, prompts: str = "prompt") -> Iterator[None]:
    """Name what can't be had: a search, the continuation of a prompt, a form, or a token after penalties.

    Raises: ApiError for a DataError or a RecipeError.
    """
    try:
        yield
    except (DataError, RecipeError) as error:
        param = "beams" if body.beams > 1 else prompts if isinstance(error, DataError) else body.limiting
        message = f"{param}: {asked_for(error)}" if param else asked_for(error)
        raise ApiError(400, message, param=param) from error


def _wanted_tokens(engine: Engine, prompts: list[list[int]], max_tokens: int | None, *, param: str) -> int:
    longest, context = max(map(len, prompts)), engine.facts.context_tokens
    wanted = max(context - longest, 1) if max_tokens is None else max_tokens
    if longest + wanted > context:
        message = f"the context is {context} tokens; the prompt has {longest} and the answer may take {wanted}"
        raise ApiError(400, message, param="max_tokens" if longest < context else param, code="context_length_exceeded")
    return wanted


def _report(service: Service, submitted: Submitted, *, hurried: bool) -> None:
    """Tell the catalogue how the model did, unless the request ended before that showed.

    A deadline that passes in the queue says nothing of the model, nor does one that the client chose (`hurried`); the
    server's own, if it passes without a token from a slot, does.
    """
    first_token_seconds = submitted.visit.record.first_token_seconds
    failed = any(_blamed(generation) or (_silent(generation) and not hurried) for generation in submitted.generations)
    if failed or first_token_seconds is not None:
        service.catalogue.report(submitted.served, ok=not failed, first_token_seconds=first_token_seconds)


def _blamed(generation: Generation) -> bool:
    """Whether it failed by the model and not by what was asked: a client can't have a version rolled back."""
    return generation.error is not None and not isinstance(generation.error, RecipeError)


def _silent(generation: Generation) -> bool:
    """Whether its time ran out while it was being worked on, before it had a token."""
    started = generation.queue_seconds is not None
    return started and generation.finish_reason == "deadline" and generation.first_token_seconds is None


async def gathered(submitted: Submitted) -> list[Written]:
    """All texts, when the last is finished.

    Raises: ApiError if time ran out, the model was closed, or what was asked for turned out impossible.
    """
    with _refused(submitted.body):
        return await asyncio.gather(*map(_written, submitted.generations))


async def _written(generation: Generation) -> Written:
    text, tokens, reason = list[str](), list[Scored](), ""
    async for chunk in generation:
        text.append(chunk.text)
        tokens += chunk.tokens
        reason = chunk.finish_reason or reason
    _check_end(reason)
    return Written("".join(text), tokens, reason)


def _check_end(reason: str | None) -> None:
    """Raises: ApiError for an end that is no answer."""
    if reason == "deadline":
        raise ApiError(504, "the answer took too long", code="deadline_exceeded")
    if reason == "cancelled":
        raise ApiError(503, "the model was closed before the answer was complete", code="cancelled")


async def interleaved(submitted: Submitted) -> AsyncIterator[tuple[int, Chunk]]:
    """Chunks of all generations as they come, each with the place of its generation.

    Raises: ApiError as `gathered` does.
    """
    with _refused(submitted.body):
        async for index, chunk in _arriving(submitted.generations):
            _check_end(chunk.finish_reason)
            yield index, chunk


async def _arriving(generations: list[Generation]) -> AsyncIterator[tuple[int, Chunk]]:
    if len(generations) == 1:
        async for chunk in generations[0]:
            yield 0, chunk
        return
    arrived: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for chunk in generation:
                arrived.put_nowait((index, chunk))
        except Exception as error:  # noqa: BLE001 - raised by the reader below
            arrived.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(index, generation)) for index, generation in enumerate(generations)]
    try:
        running = len(pumps)
        while running:
            index, arrival = await arrived.get()
            if isinstance(arrival, Exception):
                raise arrival
            running -= arrival.finish_reason is not None
            yield index, arrival
    finally:
        for pumped in pumps:
            pumped.cancel()
