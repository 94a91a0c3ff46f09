"""`trainyard up` and `down`, and Prefect's own commands against what they started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

DATA_STAGES = ("collect", "clean", "dedup", "tokenize", "audit")
PREFECT = str(Path(sys.executable).parent / "prefect")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Up:
    """A store whose services are up."""

    def __init__(self, yard: Any, port: int, dashboard_port: int) -> None:
        self.yard, self.url, self.dashboard = yard, f"http://127.0.0.1:{port}/api", f"http://127.0.0.1:{dashboard_port}"
        self.answer = yard("up", "--port", str(port), "--dashboard-port", str(dashboard_port)).stdout

    def prefect(self, *arguments: str) -> str:
        variables = {**os.environ, "PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.yard.home / "shell")}
        answer = subprocess.run([PREFECT, *arguments], env=variables, capture_output=True, text=True, timeout=400, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        token = httpx.get(f"{self.url}/csrf-token", params={"client": "test"}, timeout=30).raise_for_status().json()["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        return httpx.post(f"{self.url}/{path}", json=body, headers=headers, timeout=30).raise_for_status().json()

    def processes(self) -> dict[str, psutil.Process]:
        found = [json.loads(path.read_text()) for path in (self.yard.home / "processes").glob("*.json")]
        return {facts["role"]: psutil.Process(facts["pid"]) for facts in found}


@pytest.fixture(scope="module")
def up(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    yard = finished.elsewhere(tmp_path_factory.mktemp("up") / "store")
    for stage in DATA_STAGES:
        shutil.copytree(finished.home / stage, yard.home / stage)
    services = Up(yard, free_port(), free_port())
    yield services
    services.yard("down")


def test_up_prints_addresses_that_answer(up: Up) -> None:
    assert up.url.removesuffix("/api") in up.answer
    assert up.dashboard in up.answer
    assert httpx.get(f"{up.url}/health", timeout=10).json() is True
    assert "Ray Dashboard" in httpx.get(up.dashboard, timeout=10).text
    assert {"prefect-server", "prefect-worker", "ray"} == up.processes().keys()


def test_pages_of_other_origins_are_kept_out(up: Up) -> None:
    assert httpx.post(f"{up.url}/flows/filter", json={}, timeout=30).status_code == 403
    foreign = httpx.get(f"{up.url}/health", headers={"Origin": "http://evil.example"}, timeout=30)
    assert "access-control-allow-origin" not in foreign.headers


def test_up_again_starts_nothing(up: Up) -> None:
    before = up.processes()
    up.yard("up", "--port", "1", "--dashboard-port", "1")
    assert up.processes() == before


def test_every_flow_is_deployed_and_the_schedule_makes_runs(up: Up) -> None:
    deployed = {found["name"]: found for found in up.post("deployments/filter", {})}
    flows = {found["name"] for found in up.post("flows/filter", {})}
    assert flows == {"prepare", "pretrain", "finetune", "lifecycle", "sweep"}
    assert deployed["nightly"]["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert deployed["nightly"]["global_concurrency_limit"]["limit"] == 1
    deadline = time.monotonic() + 120
    scheduled: list[Any] = []
    while not scheduled and time.monotonic() < deadline:
        scheduled = up.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        time.sleep(1)
    assert {run["deployment_id"] for run in scheduled} == {deployed["nightly"]["id"]}
    assert all(run["auto_scheduled"] and "T02:00:00" in run["next_scheduled_start_time"] for run in scheduled)


def test_nightly_runs_through_the_worker(up: Up) -> None:
    """The command of the README; the corpus and the recipe are the test's."""
    recipe = up.yard.home.parent / "nightly.yaml"
    recipe.write_text(up.yard.recipe.read_text().replace("path: corpus", f"path: {up.yard.corpus}"))
    overrides = json.dumps({"train.steps": 12})
    answer = up.prefect(
        "deployment", "run", "pretrain/nightly", "--watch", "-p", f"recipe={json.dumps(str(recipe))}", "-p", f"overrides={overrides}"
    )
    assert "finished successfully" in answer or "Completed" in answer
    facts = up.yard.summary
    assert (facts["state"], facts["flow"], facts["registry"]["champion"]) == ("completed", "pretrain", True)
    assert set(facts["stages"]) == {"data", "base"}


def test_a_run_by_hand_uses_the_server_that_is_up(up: Up) -> None:
    before = len(up.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}))
    up.yard.run("prepare")
    assert len(up.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})) == before + 1
    assert "embedded-server" not in up.processes()


def test_everything_listens_on_loopback_only(up: Up) -> None:
    """Ports of the services and of all their children; Ray's own worker ports bind the node's address, which is loopback."""
    families = [member for process in up.processes().values() for member in (process, *process.children(recursive=True))]
    listening = {(c.laddr.ip, c.laddr.port) for member in families for c in member.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_down_ends_exactly_those_processes(up: Up) -> None:
    families = [member for process in up.processes().values() for member in (process, *process.children(recursive=True))]
    assert len(families) > 5
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        up.yard("down")
        _, alive = psutil.wait_procs(families, timeout=10)
        assert alive == []
        assert bystander.poll() is None
        assert up.processes() == {}
    finally:
        bystander.kill()
