"""What a crawl has fetched: one SQLite file that survives kill -9, and the nights between crawls."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import zstandard

from llm.data.sources.crawl.fetch import Answer
from llm.errors import ArtifactError

TABLE = """
    CREATE TABLE IF NOT EXISTS answers (
        kind TEXT NOT NULL, url TEXT NOT NULL, period TEXT NOT NULL, fetched_seconds REAL NOT NULL,
        reason TEXT NOT NULL, location TEXT NOT NULL, content_type TEXT NOT NULL, etag TEXT NOT NULL, last_modified TEXT NOT NULL,
        sha256 TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, url)
    )
"""


@dataclass(frozen=True, slots=True)
class Record:
    """An answer, and when it was given or last confirmed."""

    answer: Answer
    period: str
    fetched_seconds: float


class Archive:
    """The last settled answer for every URL. Each `put` is one transaction: it is there whole, or not at all.

    One process uses an archive at a time; the kernel frees its lock when that process dies. Locked for one process,
    a write-ahead log needs no shared memory, so the file may lie on a network file system.

    Source: https://sqlite.org/wal.html, "Use of WAL Without Shared-Memory".
    """

    def __init__(self, path: Path, period: str) -> None:
        """Raises: ArtifactError if another process uses it, or the file is damaged."""
        self.path, self.period = path, period
        with self._named_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=5, isolation_level=None)
            for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
                self._database.execute(f"PRAGMA {setting}").fetchall()
            self._database.execute(TABLE)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def find(self, kind: str, url: str) -> Record | None:
        """The record of a URL; none if there is none, or its body is damaged."""
        query = (
            "SELECT reason, location, content_type, etag, last_modified, body, sha256, period, fetched_seconds"
            " FROM answers WHERE kind = ? AND url = ?"
        )
        with self._named_errors():
            row = self._database.execute(query, (kind, url)).fetchone()
        if row is None:
            return None
        reason, location, content_type, etag, last_modified, packed, sha256, period, fetched_seconds = row
        try:
            body = zstandard.decompress(packed)
        except zstandard.ZstdError:
            return None
        if hashlib.sha256(body).hexdigest() != sha256:
            return None
        return Record(Answer(reason, location, content_type, etag, last_modified, body), period, fetched_seconds)

    def put(self, kind: str, url: str, answer: Answer) -> None:
        """Keep this answer, as of now and of this period."""
        facts = (answer.reason, answer.location, answer.content_type, answer.etag, answer.last_modified)
        body = (hashlib.sha256(answer.body).hexdigest(), zstandard.compress(answer.body))
        with self._named_errors():
            self._database.execute(
                f"INSERT OR REPLACE INTO answers VALUES ({','.join('?' * 11)})", (kind, url, self.period, time.time(), *facts, *body)
            )

    def forget_other_periods(self, kind: str, keep: Iterable[str] = ()) -> None:
        """Drop what this period's crawl has not met: pages that vanished from their site. URLs in `keep` stay."""
        vanished = "kind = ? AND period != ? AND url NOT IN (SELECT value FROM json_each(?))"
        with self._named_errors():
            self._database.execute(f"DELETE FROM answers WHERE {vanished}", (kind, self.period, json.dumps(list(keep))))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            busy = "locked" in str(error)
            remedy = "wait for it" if busy else "free space, or delete this file: the crawl then begins again"
            fact = "another process is crawling these sites" if busy else "the archive of a crawl can't be used"
            raise ArtifactError(fact, value=f"{self.path}, {error}", remedy=remedy, transient=busy) from error
