"""The services around a run: Prefect's API embedded for one run, or everything kept up between runs.

This module is imported before Prefect, whose settings are read from the environment once, at import.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows.processes import Ledger, Process, wait_until
from llm.artifact import Store
from llm.errors import DependencyError

PREFECT_FILE = Path(__file__).parent.parent / "deployments" / "prefect.yaml"
POOL = "local"


RAY_SWITCHES = {  # for a Ray that stays up, and for all who join it
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in spite of its name: bind the loopback interface only
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # without it the dashboard has no page for training
}
QUIET = {  # nothing phones home
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def environment(store: Store) -> dict[str, str]:
    """Variables under which Prefect keeps all it writes inside the store; a value that the user set wins."""
    wanted = QUIET | {
        "PREFECT_HOME": str(store.root / "prefect"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextlib.contextmanager
def prefect_api(store: Store) -> Iterator[str]:
    """Prefect's API for the length of a block: $PREFECT_API_URL, or the server of `trainyard up`, or an own one.

    The own server is shared by the runs of a store; the last one to leave ends it. One that a killed run left
    behind is taken over.
    """
    os.environ.update(environment(store))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")  # the terminal has a line per stage instead
    ledger = Ledger(store)
    if url := os.environ.get("PREFECT_API_URL"):
        yield url
        return
    with store.lock("services"):
        server = _up(ledger, "prefect-server") or _up(ledger, "embedded-server") or _start_embedded(ledger)
        user = ledger.add("user", os.getpid())
    os.environ["PREFECT_API_URL"] = url = str(server.facts["url"])
    try:
        importlib.import_module("prefect")  # takes as long as the server's start: at the same time
        _wait_for_api(ledger, server, timeout_seconds=90)
        yield url
    finally:
        try:
            _drain()
        finally:
            del os.environ["PREFECT_API_URL"]
            _leave(ledger, user, server)


def _leave(ledger: Ledger, user: Process, server: Process) -> None:
    """Strike a user off; the last one ends the embedded server."""
    with ledger.store.lock("services"):
        user.path.unlink(missing_ok=True)
        if server.role == "embedded-server" and not ledger.alive("user"):
            server.stop()


def join_ray(store: Store) -> None:
    """Let this process use the Ray of `trainyard up`, where it is up and RAY_ADDRESS names no other."""
    ray = _up(Ledger(store), "ray")
    if ray and "RAY_ADDRESS" not in os.environ:
        from llm.cluster.token import token_environment

        os.environ.update(RAY_SWITCHES | token_environment(store.root) | {"RAY_ADDRESS": str(ray.facts["address"])})


def _drain() -> None:
    """Wait until the logs and events of this process have reached Prefect's API."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=10)


def _start_embedded(ledger: Ledger) -> Process:
    """Prefect's API on a free loopback port, without the page and the services that only a lasting server needs."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    # The two names with a double underscore are how Prefect itself starts a temporary server.
    lean = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return ledger.start("embedded-server", command, lean | closed_to_pages(port), url=f"http://127.0.0.1:{port}/api")


def closed_to_pages(port: int) -> dict[str, str]:
    """Settings by which pages of other origins, open in the user's browser, can neither read nor change a server.

    On a machine shared with other people set PREFECT_SERVER_API_AUTH_STRING and PREFECT_API_AUTH_STRING too.
    """
    own = f"http://127.0.0.1:{port},http://localhost:{port}"
    return {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own, "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}


def _wait_for_api(ledger: Ledger, server: Process, *, timeout_seconds: float) -> None:
    if not wait_until(lambda: answers(f"{server.facts['url']}/health"), server, timeout_seconds=timeout_seconds):
        server.stop()
        raise DependencyError("Prefect's server did not start", value=server.facts["url"], remedy=f"read {ledger.log(server.role)}")


def answers(url: str) -> bool:
    """Whether something says 200 at a URL."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_all(store: Store, *, port: int, dashboard_port: int) -> Iterator[str]:
    """Start Prefect's server, Ray and a worker with every deployment, a line for each; what is up already stays.

    Raises: DependencyError if one of them doesn't come up, naming its log.
    """
    from llm.cluster.token import token_environment

    os.environ.update(environment(store) | token_environment(store.root))
    ledger = Ledger(store)
    with store.lock("services"):
        _end_orphans(ledger)
        server = _up(ledger, "prefect-server") or _start_server(ledger, port)
        os.environ["PREFECT_API_URL"] = str(server.facts["url"])
        yield f"Prefect  {str(server.facts['url']).removesuffix('/api')}"
        ray = _up(ledger, "ray") or _start_ray(ledger, dashboard_port)
        yield f"Ray      {ray.facts['url']}"
        _deploy()
        worker = _up(ledger, "prefect-worker") or _start_worker(ledger, ray)
        yield f"worker   process {worker.pid}, pool {POOL}"
    yield f"for your own shell: export PREFECT_API_URL={server.facts['url']} TRAINYARD_HOME={store.root}"
    yield "then: prefect deployment run pretrain/nightly --watch"


def _up(ledger: Ledger, role: str) -> Process | None:
    found = ledger.alive(role)
    return found[0] if found else None


def _end_orphans(ledger: Ledger) -> None:
    """End an embedded server that a killed run left behind: two servers must not share one SQLite file.

    Raises: DependencyError if a run is using it.
    """
    if orphan := _up(ledger, "embedded-server"):
        if users := ledger.alive("user"):
            raise DependencyError("a run has its own Prefect server", value=f"process {users[0].pid}", remedy="wait until it has ended")
        orphan.stop()


def _start_server(ledger: Ledger, port: int) -> Process:
    """Prefect's server with its page, on loopback."""
    _refuse_taken(port, "--port")
    command = [_command("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    server = ledger.start("prefect-server", command, {"PREFECT_API_URL": url, **closed_to_pages(port)}, url=url)
    _wait_for_api(ledger, server, timeout_seconds=90)
    return server


def _start_ray(ledger: Ledger, dashboard_port: int) -> Process:
    """A Ray head with its dashboard, on loopback, behind a token that only this user can read."""
    _refuse_taken(dashboard_port, "--dashboard-port")
    port = free_port()
    url, address = f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}"
    command = [
        _command("ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    ray = ledger.start("ray", command, RAY_SWITCHES, url=url, address=address)
    if not wait_until(lambda: listens(dashboard_port), ray, timeout_seconds=90):
        ray.stop()
        raise DependencyError("Ray did not start", value=address, remedy=f"read {ledger.log('ray')}")
    return ray


def _deploy() -> None:
    """The pool, and the deployments of deployments/prefect.yaml as they are now."""
    for arguments in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all"],
    ):
        command = [_command("prefect"), *arguments]
        answer = subprocess.run(command, cwd=PREFECT_FILE.parent.parent, capture_output=True, text=True, check=False)
        if answer.returncode:
            said = " ".join((answer.stdout + answer.stderr).split())
            raise DependencyError("Prefect refused the deployments", value=said[-400:], remedy="correct deployments/prefect.yaml")


def _start_worker(ledger: Ledger, ray: Process) -> Process:
    """A process worker that runs the deployments, and is known to Prefect."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import WorkPoolStatus

    variables = RAY_SWITCHES | {"RAY_ADDRESS": str(ray.facts["address"]), "TRAINYARD_HOME": str(ledger.store.root)}
    worker = ledger.start("prefect-worker", [_command("prefect"), "worker", "start", "--pool", POOL], variables)
    with get_client(sync_client=True) as client:
        if not wait_until(lambda: client.read_work_pool(POOL).status == WorkPoolStatus.READY, worker, timeout_seconds=60):
            worker.stop()
            raise DependencyError("Prefect's worker did not start", value=POOL, remedy=f"read {ledger.log('prefect-worker')}")
    return worker


def stop_all(store: Store) -> Iterator[str]:
    """End what `start_all` started, the worker first so that nothing is lost; a line for each."""
    ledger = Ledger(store)
    with store.lock("services"):
        for role in ("prefect-worker", "ray", "prefect-server"):
            for process in ledger.all(role):
                if process.alive:
                    yield f"ended    {role} (process {process.pid})"
                process.stop()


def _command(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


def _refuse_taken(port: int, option: str) -> None:
    if listens(port):
        raise DependencyError("port is taken", value=port, remedy=f"give another with {option}, or end what listens there")


def listens(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
