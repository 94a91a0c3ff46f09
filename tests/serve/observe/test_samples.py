from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.data.hashing import share
from llm.errors import ArtifactError, CapacityError
from llm.serve.observe import segments
from llm.serve.observe.config import SamplesConfig
from llm.serve.observe.metrics import Metrics
from llm.serve.observe.routes import _done
from llm.serve.observe.samples import RATINGS, Exchange, Rating, Samples, UnknownAnswer

Opened = Callable[..., Samples]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "traffic"


@pytest.fixture
def opened(folder: Path) -> Iterator[Opened]:
    """Opens samples of the folder, and closes them after the test."""
    found = list[Samples]()

    def open(**settings: Any) -> Samples:
        found.append(Samples(SamplesConfig(folder=str(folder), **settings), Metrics()))
        return found[-1]

    yield open
    for each in found:
        each.close()


def exchange(id: str, *, asked: str = "Hello?", answer: str = "Hi.") -> Exchange:
    return Exchange(id, "chat", "3", "chat", ({"role": "user", "content": asked},), answer, "stop")


def kept(folder: Path) -> list[dict[str, Any]]:
    return list(segments.read(folder))


def test_the_share_is_kept_and_drawn_by_id(opened: Opened, folder: Path) -> None:
    samples = opened(share=0.3)
    for number in range(400):
        samples.answered(exchange(f"chatcmpl-{number}"))
    samples.close()
    assert [each["id"] for each in kept(folder)] == [f"chatcmpl-{n}" for n in range(400) if share(f"chatcmpl-{n}", "traffic") < 0.3]


def test_nothing_is_written_that_was_neither_drawn_nor_rated(opened: Opened, folder: Path) -> None:
    samples = opened()
    samples.answered(exchange("chatcmpl-1"))
    samples.close()
    assert list(folder.glob("*.jsonl")) == []


def test_a_rated_answer_is_kept_with_its_prompt_before_anybody_is_told(opened: Opened, folder: Path) -> None:
    samples = opened()
    samples.answered(exchange("chatcmpl-1", asked="Why?", answer="Because."))
    samples.rated(Rating("chatcmpl-1", "down", "curt", "Because it rains.")).result(10)
    answer, rating = kept(folder)
    assert (answer["record"], answer["messages"], answer["answer"]) == ("answer", [{"role": "user", "content": "Why?"}], "Because.")
    assert (rating["record"], rating["rating"], rating["correction"]) == ("rating", "down", "Because it rains.")
    samples.rated(Rating("chatcmpl-1", "up")).result(10)
    assert [each["record"] for each in kept(folder)] == ["answer", "rating", "rating"]


def test_only_answers_of_this_server_that_are_remembered_can_be_rated(opened: Opened) -> None:
    samples = opened(remembered_answers=3)
    for number in range(5):
        samples.answered(exchange(f"chatcmpl-{number}"))
    for id in ("chatcmpl-0", "chatcmpl-1", "chatcmpl-x", ""):
        with pytest.raises(UnknownAnswer):
            samples.rated(Rating(id, "up"))
    for _ in range(RATINGS):
        samples.rated(Rating("chatcmpl-4", "up")).result(10)
    with pytest.raises(CapacityError, match="too often"):
        samples.rated(Rating("chatcmpl-4", "up"))


def test_what_is_remembered_is_bounded_in_characters_too(opened: Opened) -> None:
    samples = opened()
    for number in range(70):
        samples.answered(exchange(f"chatcmpl-{number}", answer="x" * 1_000_000))
    with pytest.raises(UnknownAnswer):
        samples.rated(Rating("chatcmpl-5", "up"))
    samples.rated(Rating("chatcmpl-69", "up")).result(10)


def test_personal_data_is_masked_wherever_somebody_writes(opened: Opened, folder: Path) -> None:
    secrets = ["jo@example.org", "GB82 WEST 1234 5698 7654 32", "4111 1111 1111 1111", "ghp_" + "a1B2" * 9, "+44 20 7946 0958", "8.8.4.4"]
    samples = opened()
    for number, secret in enumerate(secrets):
        said = f"It is {secret} indeed."
        samples.answered(exchange(f"chatcmpl-{number}", asked=said, answer=said))
        samples.rated(Rating(f"chatcmpl-{number}", "down", said, said)).result(10)
    written = "".join(path.read_text() for path in folder.iterdir())
    assert [secret for secret in secrets if secret in written] == []
    assert {kind: written.count(f"<{kind}>") for kind in ("EMAIL", "IBAN", "CARD", "KEY", "PHONE", "IP")} == dict.fromkeys(
        ("EMAIL", "IBAN", "CARD", "KEY", "PHONE", "IP"), 4
    )


def test_files_rotate_and_the_oldest_go(opened: Opened, folder: Path) -> None:
    samples = opened(share=1, segment_bytes=2_000, max_bytes=10_000)
    for number in range(200):
        samples.answered(exchange(f"chatcmpl-{number}"))
    samples.close()
    sizes = [path.stat().st_size for path in segments.segments(folder)]
    assert sum(sizes) <= 10_000
    assert max(sizes) <= 2_000
    numbers = [int(each["id"].partition("-")[2]) for each in kept(folder)]
    assert numbers == list(range(200 - len(numbers), 200))


def test_two_servers_share_a_folder(opened: Opened, folder: Path) -> None:
    first, second = opened(share=1), opened(share=1)
    for number in range(100):
        (first, second)[number % 2].answered(exchange(f"chatcmpl-{number}"))
    assert first.forgotten("chatcmpl-1").result(10) + second.forgotten("chatcmpl-0").result(10) <= 2
    first.close()
    second.close()
    assert {"chatcmpl-2", "chatcmpl-99"} <= {each["id"] for each in kept(folder)}
    assert len(segments.segments(folder)) == 2


def test_an_answer_is_forgotten_with_its_ratings(opened: Opened, folder: Path) -> None:
    samples = opened(share=1, segment_bytes=1_000)
    for number in range(12):
        samples.answered(exchange(f"chatcmpl-{number}", answer=f"Not about chatcmpl-{number + 1}."))
    samples.rated(Rating("chatcmpl-3", "up")).result(10)
    assert samples.forgotten("chatcmpl-3").result(10) == 2
    assert samples.forgotten("chatcmpl-3").result(10) == 0
    assert [each["id"] for each in kept(folder)] == [f"chatcmpl-{number}" for number in range(12) if number != 3]
    with pytest.raises(UnknownAnswer):
        samples.rated(Rating("chatcmpl-3", "up"))


def test_a_full_disk_loses_the_line_and_nothing_else(opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = opened()
    for number in range(3):
        samples.answered(exchange(f"chatcmpl-{number}"))
    samples.rated(Rating("chatcmpl-0", "up")).result(10)
    monkeypatch.setattr("llm.failpoint._passed", __import__("collections").Counter())
    monkeypatch.setenv("TRAINYARD_FAILPOINT", "append:raise:1")
    with pytest.raises(OSError, match="No space left"):
        samples.rated(Rating("chatcmpl-1", "up")).result(10)
    monkeypatch.delenv("TRAINYARD_FAILPOINT")
    samples.rated(Rating("chatcmpl-1", "down")).result(10)
    assert [(each["id"], each["record"]) for each in kept(folder)] == [
        (id, record) for id in ("chatcmpl-0", "chatcmpl-1") for record in ("answer", "rating")
    ]


def test_an_item_that_cannot_be_written_is_the_only_one(opened: Opened, folder: Path) -> None:
    samples = opened()
    samples.answered(exchange("chatcmpl-1"))
    with pytest.raises(AttributeError):
        samples.rated(Rating("chatcmpl-1", "up", comment=5)).result(10)  # type: ignore[arg-type]
    samples.rated(Rating("chatcmpl-1", "down")).result(10)
    assert [each["record"] for each in kept(folder)] == ["answer", "rating"]


def test_a_client_that_leaves_loses_no_rating_and_stops_nobody(opened: Opened, folder: Path) -> None:
    samples, disk = opened(), threading.Event()
    samples.answered(exchange("chatcmpl-1"))
    samples._submit(disk.wait)  # a slow one
    waiting, dropped = samples.rated(Rating("chatcmpl-1", "up")), samples.rated(Rating("chatcmpl-1", "up", comment="dropped"))

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_done(waiting), 0.01)

    asyncio.run(leave())
    assert dropped.cancel()
    disk.set()
    samples.rated(Rating("chatcmpl-1", "down")).result(10)
    assert [each.get("rating") for each in kept(folder)] == [None, "up", "down"]


def test_a_killed_server_leaves_whole_lines(folder: Path) -> None:
    code = f"""
import sys
from tests.serve.observe.test_samples import exchange
from llm.serve.observe.config import SamplesConfig
from llm.serve.observe.metrics import Metrics
from llm.serve.observe.samples import Samples
samples = Samples(SamplesConfig(folder={str(folder)!r}, share=1), Metrics())
for number in range(1000):
    samples.answered(exchange(f"chatcmpl-{{number}}"))
samples.close()
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRAINYARD_FAILPOINT": "append:kill:20", "PYTHONPATH": "."}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    lines = [line for path in segments.segments(folder) for line in path.read_text().splitlines()]
    assert [json.loads(line)["id"] for line in lines] == [f"chatcmpl-{number}" for number in range(20)]


def test_a_torn_line_is_skipped_and_can_be_forgotten(folder: Path) -> None:
    folder.mkdir()
    whole = json.dumps({"id": "chatcmpl-1", "record": "answer"})
    (folder / "traffic-0.jsonl").write_text(f'{whole}\n{{"id": "chatcmpl-2", "rec')
    assert [each["id"] for each in kept(folder)] == ["chatcmpl-1"]
    assert segments.forget(folder, "chatcmpl-2") == 1
    assert (folder / "traffic-0.jsonl").read_text() == f"{whole}\n"


def test_nobody_else_can_read_the_folder(opened: Opened, folder: Path) -> None:
    samples = opened(share=1)
    samples.answered(exchange("chatcmpl-1"))
    samples.answered(exchange("chatcmpl-2"))
    samples.forgotten("chatcmpl-1").result(10)
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in segments.segments(folder))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"samples can't be kept: .*file/below .*set observe\.samples\.folder"):
        Samples(SamplesConfig(folder=str(tmp_path / "file" / "below")), Metrics())
