"""The ledger knows who runs, who died, and never takes another process for one of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.processes import Ledger, wait_until
from llm.artifact import Store
from llm.errors import DependencyError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Store(tmp_path))


def test_a_started_process_writes_itself_down_and_is_ended(ledger: Ledger) -> None:
    process = ledger.start("ray", SLEEP, {}, url="http://here")
    assert process.alive
    (found,) = ledger.alive("ray")
    assert (found.pid, found.facts["url"], found.birth) == (process.pid, "http://here", process.birth)
    found.stop()
    assert not process.alive
    assert ledger.all() == []


def test_one_whose_parent_is_killed_at_once_is_still_known(ledger: Ledger) -> None:
    """The parent dies between starting the child and anything else that it could do."""
    script = (
        "import os, signal, sys, subprocess; from flows import processes; "
        "processes.subprocess.Popen = lambda *a, **k: (subprocess.run, os.spawnve(os.P_NOWAIT, a[0][0], a[0], k['env']), "
        "os.kill(os.getpid(), signal.SIGKILL)); "
        "from llm.artifact import Store; from pathlib import Path; "
        "processes.Ledger(Store(Path(sys.argv[1]))).start('ray', [sys.executable, '-c', 'import time; time.sleep(600)'], {})"
    )
    subprocess.run([sys.executable, "-c", script, str(ledger.store.root)], check=False)
    deadline = time.monotonic() + 30
    while not ledger.alive("ray") and time.monotonic() < deadline:
        time.sleep(0.1)
    (orphan,) = ledger.alive("ray")
    orphan.stop()
    assert not orphan.alive


def test_a_reused_id_is_not_ours(ledger: Ledger) -> None:
    process = ledger.add("run", os.getpid())
    assert process.alive
    facts = json.loads(process.path.read_text())
    process.path.write_text(json.dumps(facts | {"birth": "another boot 42"}))
    assert ledger.alive("run") == []
    assert len(ledger.all("run")) == 1


def test_stopping_a_reused_id_ends_nobody(ledger: Ledger) -> None:
    bystander = subprocess.Popen(SLEEP)
    try:
        process = ledger.add("run", bystander.pid)
        process.path.write_text(json.dumps(json.loads(process.path.read_text()) | {"birth": "another boot 42"}))
        ledger.all("run")[0].stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_registered_ends_with_the_block(ledger: Ledger) -> None:
    with ledger.registered("run", folder="x"):
        assert [process.pid for process in ledger.alive("run")] == [os.getpid()]
    assert ledger.all() == []


def test_a_service_that_dies_at_once_is_a_named_error(ledger: Ledger) -> None:
    process = ledger.start("ray", [sys.executable, "-c", "raise SystemExit(3)"], {})
    assert wait_until(lambda: False, process, timeout_seconds=30) is False
    with pytest.raises(DependencyError, match="a service did not start"):
        ledger.start("ray", ["/nowhere/at/all"], {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
