"""Load on a served model, as real clients of a real server process bring it, and whether it holds.

    python tests/drills/serve_load.py steady --seconds 600
    python tests/drills/serve_load.py all --seconds 60

Scenarios: `steady` 64 clients without an error; `overload` ten times as many clients as are let in, where all others are refused at
once and those let in don't suffer; `slowloris` 500 sockets that never finish a header; `disconnects` 1,000 clients that leave;
`promotion` of another version amid requests; `soak` memory and descriptors over time. Each prints a JSON line with its verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a script

from llm.artifact import Store
from llm.data.config import TokenizeConfig
from llm.data.tokenizer import train
from llm.export.config import ExportConfig
from llm.export.onnx import write
from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.registry import of_store
from tests.drills.clients import Answer, ask, crowd, half_open, leavers, p

CONTEXT_TOKENS = 512
NAME = "tiny-chat"
TRAINYARD = str(Path(sys.executable).parent / "trainyard")
PROMPTS = ["def ", "import os\n", "class Parser:\n    ", "return self.", "# A comment that is a little longer than the others\n"]


@dataclass(frozen=True)
class Server:
    """A running server, and how long a scenario may load it."""

    process: psutil.Process
    port: int
    home: Path
    folder: Path
    seconds: float

    def gauges(self, *names: str) -> float:
        """Sum of gauges or counters on /metrics."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=30).text
        return sum(float(value) for name in names for value in re.findall(rf"^trainyard_{name} (\S+)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Outcome:
    """A verdict and the figures that it rests on."""

    passed: bool
    figures: dict[str, Any]


def bodies(model: str, *, max_tokens: int) -> list[dict[str, Any]]:
    """Requests of one length, so that phases of a scenario can be compared."""
    return [{"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True} for prompt in PROMPTS]


async def steady(server: Server) -> Outcome:
    """64 clients: no error, and no refusal either."""
    answers = await crowd(server.port, 64, server.seconds, bodies(NAME, max_tokens=32))
    wrong = [answer for answer in answers if answer.failed or answer.refused]
    return Outcome(not wrong, figures(answers) | {"tokens_per_second": round(32 * (len(answers) - len(wrong)) / server.seconds)})


async def overload(server: Server) -> Outcome:
    """Ten times as many clients as are let in: the others get 429 or 503 within 100 ms, and first tokens take at most twice as long."""
    at_limit = await crowd(server.port, LIMIT, server.seconds / 2, bodies(NAME, max_tokens=32))
    over = await crowd(server.port, 10 * LIMIT, server.seconds / 2, bodies(NAME, max_tokens=32))
    refused = p(99, [answer.seconds for answer in over if answer.refused])
    before, during = (p(99, [answer.first_seconds for answer in phase if answer.status == 200]) for phase in (at_limit, over))
    passed = not any(answer.failed for answer in at_limit + over) and refused <= 100 and during <= 2 * before
    return Outcome(
        passed,
        {"at_limit": figures(at_limit), "over": figures(over), "refusal_p99_ms": refused, "first_p99_ratio": round(during / before, 2)},
    )


async def slowloris(server: Server) -> Outcome:
    """500 half-open sockets change the 99th percentile of whole answers by less than 20 %. Phases alternate, against drift."""
    calm: list[Answer] = []
    beset: list[Answer] = []
    for _ in range(4):
        calm += await crowd(server.port, 8, server.seconds / 8, bodies(NAME, max_tokens=32))
        async with half_open(server.port, 500):
            await asyncio.sleep(1)
            beset += await crowd(server.port, 8, server.seconds / 8, bodies(NAME, max_tokens=32))
    before, during = (p(99, [answer.seconds for answer in phase]) for phase in (calm, beset))
    passed = not any(answer.failed or answer.refused for answer in calm + beset) and during < 1.2 * before
    return Outcome(passed, {"calm": figures(calm), "beset": figures(beset), "p99_ratio": round(during / before, 3)})


async def disconnects(server: Server) -> Outcome:
    """1,000 clients leave in the middle of long answers, 200 at a time; two seconds later nothing is being written for them."""
    body = {"model": NAME, "prompt": "x", "max_tokens": CONTEXT_TOKENS - 10, "ignore_eos": True}
    answers = await leavers(server.port, 1_000, 200, body)
    await asyncio.sleep(2)
    alive = server.gauges(r"num_requests_(?:running|waiting)\{.*\}")
    after = await ask(server.port, body | {"max_tokens": 4})
    passed = alive == 0 and not after.failed and not any(answer.refused for answer in answers)
    return Outcome(passed, {"statuses": Counter(answer.status for answer in answers), "alive_after_2_s": alive, "after": after.status})


async def promotion(server: Server) -> Outcome:
    """Another version becomes champion amid requests: none fails, and in the end it answers all."""
    loaded = asyncio.create_task(crowd(server.port, 16, server.seconds, bodies(NAME, max_tokens=8)))
    await asyncio.sleep(server.seconds / 4)
    await asyncio.to_thread(publish, server.home, server.folder, "two")
    answers = await loaded
    promoted = server.gauges(r'model_events_total\{event="promoted",.*\}')
    return Outcome(
        promoted == 1 and not any(answer.failed or answer.refused for answer in answers), figures(answers) | {"promoted": promoted}
    )


async def soak(server: Server) -> Outcome:
    """Memory and descriptors under 16 clients. The first third is warm-up; growth is the slope of a line through the rest."""
    samples: list[tuple[float, float, int]] = []
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server.process, samples, over))
    watcher.start()
    answers = await crowd(server.port, 16, server.seconds, bodies(NAME, max_tokens=32))
    over.set()
    watcher.join()
    hours, mib, files = (np.array(column) for column in zip(*samples[len(samples) // 3 :], strict=True))
    slope, half = float(np.polyfit(hours, mib, 1)[0]), len(files) // 2
    drift = float(np.median(files[half:]) - np.median(files[:half]))
    passed = slope < 1 and abs(drift) <= 2 and not any(answer.failed for answer in answers)
    return Outcome(
        passed, figures(answers) | {"mib_per_hour": round(slope, 2), "resident_mib": round(float(mib[-1])), "descriptor_drift": drift}
    )


def _watch(process: psutil.Process, samples: list[tuple[float, float, int]], over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(0.5):
        samples.append(((time.monotonic() - began) / 3600, process.memory_info().rss / 2**20, process.num_fds()))


def figures(answers: list[Answer]) -> dict[str, Any]:
    """Counts by status, and times of those that were answered, in milliseconds."""
    good = [answer for answer in answers if answer.status == 200 and answer.whole]
    return {
        "statuses": dict(Counter(answer.status for answer in answers)),
        "failed": sum(answer.failed for answer in answers),
        "first_p50_ms": p(50, [answer.first_seconds for answer in good]),
        "first_p99_ms": p(99, [answer.first_seconds for answer in good]),
        "answer_p99_ms": p(99, [answer.seconds for answer in good]),
    }


LIMIT = 32  # of the server that `overload` meets
SCENARIOS: dict[str, tuple[Callable[[Server], Coroutine[Any, Any, Outcome]], dict[str, Any]]] = {
    "steady": (steady, {}),
    "overload": (overload, {"limits": {"requests": LIMIT}}),
    "slowloris": (slowloris, {}),
    "disconnects": (disconnects, {"limits": {"requests": 256}, "models": {"engine": {"queue_requests": 1024}}}),  # none is refused
    "promotion": (promotion, {"models": {"poll_seconds": 0.2}}),
    "soak": (soak, {}),
}


def export_model(folder: Path, *, width: int, layers: int) -> int:
    """Export a model of random weights, which costs what a trained one does. Returns its number of parameters."""
    (folder / "onnx").mkdir(parents=True)
    sources = [inspect.getsource(module) for module in (argparse, textwrap)]
    (folder / "tokenizer.model").write_bytes(train(sources, TokenizeConfig(vocab_size=600, row_tokens=32)))
    torch.manual_seed(0)
    shape = DecoderConfig(
        width=width,
        num_layers=layers,
        num_heads=width // 64,
        num_kv_heads=max(1, width // 128),
        ffn_width=3 * width,
        max_positions=CONTEXT_TOKENS,
    )
    model = Decoder(shape, 600).eval()
    write(model, folder / "tokenizer.model", folder / "onnx", ExportConfig())
    return sum(parameter.numel() for parameter in model.parameters())


def publish(home: Path, folder: Path, key: str) -> None:
    """Register the model as another version, and make it the champion."""

    def build(out: Path) -> dict[str, Any]:
        shutil.copytree(folder / "onnx", out / "onnx")
        (out / "onnx" / "README.md").write_text(key)
        return {}

    store = Store(home)
    made, registry = store.produce("export", key, {}, build), of_store(store)
    version = registry.add_candidate(NAME, made.path, digest=made.ref.digest, metrics={"bits_per_byte": 1.5}, lineage={})
    with registry.deciding():
        registry.promote(NAME, version.number)


@contextlib.contextmanager
def serving(home: Path, folder: Path, settings: dict[str, Any], seconds: float) -> Iterator[Server]:
    """A server process on a free port, for the length of a block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    (home / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [TRAINYARD, "serve", f"{NAME}@champion", "--config", str(home / "settings.yaml"), "--port", str(port), "--threads", "1"]
    with (home / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TRAINYARD_HOME": str(home)})
    try:
        _await_ready(process, port, home / "log")
        yield Server(psutil.Process(process.pid), port, home, folder, seconds)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/ready").is_success:
                return
        time.sleep(0.1)
    raise TimeoutError("the server never became ready")


def main(names: list[str], seconds: float, width: int, layers: int) -> int:
    """Run scenarios one after another, each against a server of its own."""
    failed = 0
    for name in names:
        scenario, settings = SCENARIOS[name]
        with tempfile.TemporaryDirectory(prefix="trainyard-load-") as temporary:
            home, folder = Path(temporary) / "home", Path(temporary) / "model"
            home.mkdir()
            parameters = export_model(folder, width=width, layers=layers)
            publish(home, folder, "one")
            gc.freeze()  # a full collection would stop the clients for 0.6 s, which isn't the server's doing
            with serving(home, folder, settings, seconds) as server:
                outcome = asyncio.run(scenario(server))
        failed += not outcome.passed
        facts = {"scenario": name, "verdict": "PASS" if outcome.passed else "FAIL", "seconds": seconds, "parameters": parameters}
        print(json.dumps(facts | outcome.figures), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    chosen = parser.parse_args()
    sys.exit(main(list(SCENARIOS) if chosen.scenario == "all" else [chosen.scenario], chosen.seconds, chosen.width, chosen.layers))
