"""Kill a replica of the endpoint every second while clients ask, and count the answers.

    python tests/drills/serve_kills.py --seconds 300

A small model on Ray Serve, and clients without a pause between requests, each of which tries a second time where the first
failed. Every second SIGKILL ends one replica that answers. The last line says PASS if at least 99 % of the requests were
answered, and names how many needed the second try.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

WANTED_SHARE = 0.99
RETRY_AFTER_SECONDS = 1.0


def main(seconds: float, replicas: int, clients: int, seed: int) -> int:
    """Serve, kill, count."""
    from llm.cluster.serve import Replicas, replicated
    from llm.serve.endpoint.config import Settings
    from llm.serve.engine.config import EngineConfig
    from llm.serve.models.config import ModelsConfig
    from llm.serve.models.spec import ModelSpec

    with tempfile.TemporaryDirectory(prefix="trainyard-kills-") as name:
        export(Path(name))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = Settings(port=port, models=ModelsConfig(engine=EngineConfig(threads=1, slots=8)))
        size = Replicas(least=replicas, most=replicas, cpus=0.1)
        with replicated([ModelSpec.parse(f"small={name}")], settings, size, Path(name, "home")) as address:
            over, counts = threading.Event(), Counter[str]()
            threads = [threading.Thread(target=ask, args=(address, over, counts)) for _ in range(clients)]
            for thread in threads:
                thread.start()
            alive = kill(seconds, random.Random(seed), counts)
            over.set()
            for thread in threads:
                thread.join()
    asked = counts["first try"] + counts["second try"] + counts["lost"]
    share = 1 - counts["lost"] / max(asked, 1)
    verdict = "PASS" if share >= WANTED_SHARE and asked else "FAIL"
    print(json.dumps({"verdict": verdict, "answered": round(share, 5), "replicas alive, mean": round(alive, 2), **counts}), flush=True)
    return 0 if verdict == "PASS" else 1


def ask(address: str, over: threading.Event, counts: Counter[str]) -> None:
    """One client: request after request, each tried twice at most."""
    body = {"model": "small", "prompt": "def wrap", "max_tokens": 4}
    with httpx.Client(base_url=address, timeout=30) as client:
        while not over.is_set():
            if answered(client, body):
                counts["first try"] += 1
                continue
            time.sleep(RETRY_AFTER_SECONDS)
            counts["second try" if answered(client, body) else "lost"] += 1


def answered(client: httpx.Client, body: dict[str, Any]) -> bool:
    try:
        response = client.post("/v1/completions", json=body)
    except httpx.TransportError:
        return False
    return response.status_code == 200 and bool(response.json()["choices"])


def kill(seconds: float, chance: random.Random, counts: Counter[str]) -> float:
    """SIGKILL to one replica a second, among those that answer; how many did before each, on average."""
    began, alive, rounds = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        time.sleep(1)
        found = answering()
        rounds, alive = rounds + 1, alive + len(found)
        if found:
            os.kill(chance.choice(found), signal.SIGKILL)
            counts["kills"] += 1
        if rounds % 10 == 0:
            print(json.dumps({"seconds": round(time.monotonic() - began), "alive": len(found), **counts}), flush=True)
    return alive / max(rounds, 1)


def answering() -> list[int]:
    """Processes of the replicas that Ray sends requests to."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client, "Ray Serve runs"
    (application,) = client.get_serve_details()["applications"].values()
    replicas = [replica for deployment in application["deployments"].values() for replica in deployment["replicas"]]
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING" and psutil.pid_exists(replica["pid"])]


def export(folder: Path) -> None:
    """A small model that says anything."""
    import torch

    from llm.data.config import TokenizeConfig
    from llm.data.tokenizer import train
    from llm.export.config import ExportConfig
    from llm.export.onnx import write
    from llm.model.config import DecoderConfig
    from llm.model.decoder import Decoder

    torch.manual_seed(3)
    (folder / "tokenizer.model").write_bytes(train([inspect.getsource(textwrap)], TokenizeConfig(vocab_size=400, row_tokens=32)))
    config = DecoderConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=256)
    (folder / "onnx").mkdir()
    write(Decoder(config, 400).eval(), folder / "tokenizer.model", folder / "onnx", ExportConfig())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--replicas", type=int, default=6)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.seconds, arguments.replicas, arguments.clients, arguments.seed))
