"""The thread that runs the model: admits who waits, reads prompts, writes tokens, frees slots."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from llm.errors import CapacityError, RecipeError
from llm.serve.engine.batch import Batch, Row
from llm.serve.engine.beams import Beams
from llm.serve.engine.generation import Chunk, Event, Finished, FinishReason, Generation, Scored, Step
from llm.serve.engine.queue import FairQueue
from llm.serve.engine.sampling import adjust, check_finite, choose, log_softmax
from llm.serve.engine.speculation import Draft, judge
from llm.serve.engine.text import TextStream

log = logging.getLogger(__name__)


class Loop:
    """One thread, one batch. Everything but `put`, `call`, `counts` and `close` runs in the thread."""

    def __init__(
        self,
        batch: Batch,
        pieces: list[bytes | None],
        *,
        kv_tokens: int,
        queue_requests: int,
        prefill_tokens: int,
        draft: Draft | None,
        search: Callable[[Generation], Beams],
        tell: Callable[[Event], None],
    ) -> None:
        self.kv_tokens, self._queue_requests, self._prefill_tokens = kv_tokens, queue_requests, prefill_tokens
        self._batch, self._pieces, self._tell, self._draft, self._search = batch, pieces, tell, draft, search
        self._searches: list[Beams] = []
        self._silent = np.array([piece is None for piece in pieces])
        self._queue, self._calls = FairQueue(), deque[Callable[[], None]]()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, generation: Generation) -> None:
        """Queue a generation, unless its client holds as many places as are free: some are left for whoever comes next.

        Those that get a slot at once take no place.
        Source: dynamic thresholds, Choudhury and Hahne, https://doi.org/10.1109/90.664262.

        Raises: CapacityError if the queue is full for this client, or the loop is closed.
        """
        with self._changed:
            if self._closed:
                raise CapacityError("engine is closed", remedy="start it again")
            queued, at_once = len(self._queue), self._at_once(self._queue.first() or generation)
            waiting, held = (max(0, count - at_once) for count in (queued, self._queue.held(generation.client)))
            if queued >= at_once and held >= self._queue_requests - waiting:
                raise CapacityError("queue is full", value=f"{waiting} requests wait, {held} of this client", remedy="try again later")
            self._queue.put(generation)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` gives, run between two steps."""
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:  # noqa: BLE001 - the caller gets it
                answer.set_exception(error)

        with self._changed:
            if self._closed:
                raise CapacityError("engine is closed", remedy="start it again")
            self._calls.append(run)
            self._changed.notify()
        return answer.result()

    def counts(self) -> tuple[int, int, int]:
        """Rows that run, generations that wait, tokens that are reserved."""
        with self._changed:
            return self._running(), len(self._queue), self._reserved_tokens()

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._running() or self._queue or self._calls)
                if self._closed:
                    break
                calls, self._calls = self._calls, deque()
                ended = self._admit()
            for call in calls:
                call()
            for generation, why in ended:
                if isinstance(why, Exception):
                    self._fail(generation, why)
                else:
                    self._finish(generation, Chunk("", finish_reason=why))
            self._guarded_step()
        self._end()

    def _admit(self) -> list[tuple[Generation, FinishReason | Exception]]:
        """Give slots to those whose turn it is, while there is room; those that ended while they waited, or can't begin."""
        over = [(generation, _over(generation)) for generation in self._queue.drop(lambda generation: _over(generation) is not None)]
        ended: list[tuple[Generation, FinishReason | Exception]] = [(generation, reason) for generation, reason in over if reason]
        while (first := self._queue.first()) and self._at_once(first):
            first.queue_seconds = time.monotonic() - first.began
            try:
                self._start(self._queue.pop())
            except Exception as error:  # there may be no memory for it
                log.exception("a generation can't begin")
                ended.append((first, error))
        return ended

    def _at_once(self, first: Generation) -> int:
        """How many generations may begin now if `first` is the next one: none as long as there is no room for it."""
        free_slots, free_tokens = self._batch.most_rows - self._running(), self.kv_tokens - self._reserved_tokens()
        return free_slots if first.sampling.beams <= free_slots and first.need_tokens <= free_tokens else 0

    def _start(self, generation: Generation) -> None:
        if generation.sampling.beams > 1:
            self._searches.append(self._search(generation))
        else:
            self._batch.add(Row.of(generation))

    def _running(self) -> int:
        return len(self._batch.rows) + sum(beams.generation.sampling.beams for beams in self._searches)

    def _reserved_tokens(self) -> int:
        return self._batch.reserved_tokens + sum(beams.generation.need_tokens for beams in self._searches)

    def _guarded_step(self) -> None:
        """A step of each search and one of the batch; if that fails, so do its rows, and the next requests meet an empty one."""
        for beams in list(self._searches):
            with self._alone(beams):
                self._search_on(beams)
        try:
            for row in [row for row in self._batch.rows if _over(row.generation)]:
                self._end_row(row, row.stream.finish(), _over(row.generation))
            self._write()
            self._read()
        except Exception as error:
            log.exception("a step of the model failed")
            for row in list(self._batch.rows):
                self._fail_alone(row, error)

    @contextmanager
    def _alone(self, one: Row | Beams) -> Iterator[None]:
        """What fails in here fails this row or search, and nothing beside it."""
        try:
            yield
        except RecipeError as error:  # what was asked for can't be had
            self._fail_alone(one, error)
        except Exception as error:
            log.exception("a generation failed")
            self._fail_alone(one, error)

    def _fail_alone(self, one: Row | Beams, error: Exception) -> None:
        if isinstance(one, Row):
            self._batch.remove(one, keep=False)
        else:
            self._searches.remove(one)
        self._fail(one.generation, error)

    def _search_on(self, beams: Beams) -> None:
        """One step of a beam search; its text comes in one piece."""
        generation, ids = beams.generation, beams.step()
        reason = _over(generation)
        if ids is None and reason is None:
            return
        stream, text, tokens = TextStream(generation.sampling.stop), "", []
        for id in ids or []:
            if stream.stopped:
                break
            tokens.append(Scored(id))
            piece = self._pieces[id]
            if piece is None:
                reason = "stop"
                break
            text += stream.push(piece)
        chunk = Chunk(text + stream.finish(), tuple(tokens), "stop" if stream.stopped else reason or "length")
        self._searches.remove(beams)
        self._finish(generation, chunk)

    def _write(self) -> None:
        rows, began = self._batch.rows[: self._batch.writing], time.perf_counter()
        if self._draft and len(rows) == len(self._batch.rows) == 1 and (ahead := self._draft.room(rows[0])):
            tokens = self._speculate(self._draft, rows[0], ahead)
            self._tell(Step("decode", 1, tokens, time.perf_counter() - began))
        elif rows:
            logits = self._batch.write()
            self._advance(rows, logits)
            self._tell(Step("decode", len(rows), len(rows), time.perf_counter() - began))

    def _speculate(self, draft: Draft, row: Row, ahead: int) -> int:
        """Write as many tokens as the draft guesses, and one more; how many they were."""
        before, sampling = row.count, row.generation.sampling
        with self._alone(row):
            ids, drafts_TV = draft.ahead(row, ahead)
            for place, logits_V in enumerate(self._batch.check(row, ids)):
                logprobs_V = self._prepare(row, logits_V)
                guessed = place < len(ids)
                id = judge(logits_V, ids[place], drafts_TV[place], sampling, row.rng) if guessed else _choices([row], logits_V[None])[0]
                row.read += 1
                self._take(row, id, logprobs_V)
                if not guessed or id != ids[place] or row not in self._batch.rows:
                    break
        draft.agree(row.count - 1)
        return row.count - before

    def _read(self) -> None:
        began, through = time.perf_counter(), dict[Row, np.ndarray]()
        for row, tokens, logits_V in self._batch.read_some(self._prefill_tokens):
            self._tell(Step("prefill", 1, tokens, time.perf_counter() - began))
            if logits_V is not None:
                through[row] = logits_V
            began = time.perf_counter()
        if through:
            self._advance(list(through), np.stack(list(through.values())))

    def _advance(self, rows: list[Row], logits_BV: np.ndarray) -> None:
        """Choose each row's next token and hand it on."""
        logprobs: dict[int, np.ndarray | None] = {}
        for place, row in enumerate(rows):
            with self._alone(row):
                logprobs[place] = self._prepare(row, logits_BV[place])
        if len(logprobs) < len(rows):
            rows, logits_BV = [rows[place] for place in logprobs], logits_BV[list(logprobs)]
        for row, id, logprobs_V in zip(rows, _choices(rows, logits_BV), logprobs.values(), strict=True):
            with self._alone(row):
                self._take(row, id, logprobs_V)

    def _prepare(self, row: Row, logits_V: np.ndarray) -> np.ndarray | None:
        """Restrict a row's logits in place, and give the log-probabilities that they were, if asked for.

        Raises: ArtifactError if the logits aren't finite; RecipeError if they are no longer, or none is left.
        """
        sampling = row.generation.sampling
        check_finite(logits_V)
        logprobs_V = log_softmax(logits_V) if row.generation.top is not None else None
        adjust(logits_V, sampling, tokens=row.text, written=row.written)
        if sampling.ignore_eos:
            logits_V[self._silent] = -np.inf
        if row.generation.matcher:
            logits_V[~row.generation.matcher.allowed()] = -np.inf
        if not np.isfinite(logits_V.max()):
            raise RecipeError("settings leave no token to go on with", remedy="ask for smaller penalties, or let the text end")
        return logprobs_V

    def _take(self, row: Row, id: int, logprobs_V: np.ndarray | None) -> None:
        """Append a token to its text; any id that is no text ends it, as a token that says nothing."""
        piece, matcher, token = self._pieces[id], row.generation.matcher, scored(id, logprobs_V, row.generation.top)
        if piece is None:
            self._end_row(row, row.stream.finish(), "stop", token)
            return
        row.append(id)
        text = row.stream.push(piece)
        if matcher:
            matcher.take(id)
        if row.stream.stopped:
            self._end_row(row, text, "stop", token)
        elif matcher and matcher.over:
            self._end_row(row, text + row.stream.finish(), "stop", token)
        elif row.count == len(row.tokens):
            self._end_row(row, text + row.stream.finish(), "length", token)
        else:
            row.generation.put(Chunk(text, (token,)))

    def _end_row(self, row: Row, text: str, reason: FinishReason | None, *tokens: Scored) -> None:
        self._batch.remove(row)
        self._finish(row.generation, Chunk(text, tokens, reason))

    def _finish(self, generation: Generation, chunk: Chunk) -> None:
        generation.put(chunk)
        self._tell(Finished(generation))

    def _fail(self, generation: Generation, error: Exception) -> None:
        generation.fail(error)
        self._tell(Finished(generation))

    def _end(self) -> None:
        """What still runs or waits when the loop closes is cancelled."""
        rest = [row.generation for row in self._batch.rows] + [beams.generation for beams in self._searches]
        rest += self._queue.drop(lambda _: True)
        for call in self._calls:
            call()
        for generation in rest:
            self._finish(generation, Chunk("", finish_reason="cancelled"))


def _over(generation: Generation) -> FinishReason | None:
    """Why a generation needn't go on, if so."""
    if generation.cancelled:
        return "cancelled"
    return "deadline" if generation.deadline is not None and time.monotonic() > generation.deadline else None


def _choices(rows: list[Row], logits_BV: np.ndarray) -> list[int]:
    return choose(logits_BV, [row.generation.sampling for row in rows], np.array([row.rng.random() for row in rows])).tolist()


def scored(id: int, logprobs_V: np.ndarray | None, top: int | None) -> Scored:
    """The token with its log-probability and the `top` likeliest, if they were asked for."""
    if logprobs_V is None:
        return Scored(id)
    best = np.argpartition(-logprobs_V, min(top or 0, len(logprobs_V) - 1))[: top or 0]
    likeliest = sorted(best.tolist(), key=lambda other: (-logprobs_V[other], other))
    return Scored(id, float(logprobs_V[id]), {other: float(logprobs_V[other]) for other in likeliest})
