"""The commands that look: what they say of a finished yard, of an empty one and of a broken one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import doctor
from llm.artifact import Store
from llm.stages import GRAPH


def refused(answer: Any) -> str:
    """The one line on stderr with which a command ended."""
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert answer.stderr.startswith("error: ")
    return str(answer.stderr)


def lines(answer: Any) -> list[str]:
    return str(answer.stdout).splitlines()


def test_status_lists_run_state_and_both_champions(finished: Any) -> None:
    answer = lines(finished("status"))
    run = next(line for line in answer if finished.summary["run_id"] in line)
    assert run.split()[1:3] == ["lifecycle", "completed"]
    assert run.split()[-2:] == [str(len(GRAPH)), "0"]
    champions = [line.split()[1:4] for line in answer if line.startswith("champion: ")]
    assert champions == [["mini-base", "version", "1"], ["mini-chat", "version", "1"]]


def test_lineage_goes_down_to_the_collected_text(finished: Any) -> None:
    chain = [line.split()[:2] for line in lines(finished("lineage"))]
    nodes = [node for node, _ in chain]
    assert nodes[0] == list(finished.states)[-1]
    assert {"tuned.finetune", "base.pretrain", "data.tokenize", "data.clean"} <= set(nodes)
    assert nodes[-1] == "data.collect"
    assert len(nodes) == len(set(nodes))
    assert all((finished.home / artifact / "manifest.json").is_file() for _, artifact in chain)


def test_lineage_of_one_artifact_shows_no_more_than_it_descends_from(finished: Any) -> None:
    key = finished.summary["stages"]["data"]["clean"]["key"]
    assert [line.split()[:2] for line in lines(finished("lineage", f"clean/{key}"))] == [
        ["data.clean", f"clean/{key}"],
        ["data.collect", f"collect/{finished.summary['stages']['data']['collect']['key']}"],
    ]


def test_a_rollback_without_predecessor_is_refused(finished: Any) -> None:
    error = refused(finished("promote", "mini-chat", "--rollback", check=False))
    assert "PromotionError: no earlier champion to go back to: mini-chat" in error


def test_serving_a_folder_that_is_not_there_is_refused(finished: Any, tmp_path: Path) -> None:
    assert "absent" in refused(finished("serve", str(tmp_path / "absent"), check=False, timeout=60))


def test_the_report_is_there_and_linked_in_prefect(finished: Any) -> None:
    page = Path(finished.summary["report"])
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    with closing(sqlite3.connect((finished.home / "prefect" / "prefect.db").as_uri() + "?mode=ro", uri=True)) as database:
        links = database.execute("select data from artifact where key = 'report'").fetchall()
    assert links
    assert page.as_uri() in links[-1][0]


def test_an_empty_store_is_planned_from_the_first_stage_on(finished: Any, tmp_path: Path) -> None:
    yard = finished.elsewhere(tmp_path / "store")
    planned = [line.split() for line in lines(yard("plan", "--recipe", str(yard.recipe)))]
    steps = {words[0]: words[1:] for words in planned if words[0] in GRAPH}
    assert list(steps) == list(GRAPH)
    assert {words[0] for words in steps.values()} == {"run"}
    assert "new" in " ".join(steps["data.collect"])
    assert any("parameters," in words for words in planned)
    assert not (tmp_path / "store" / "collect").exists()


def test_an_empty_store_has_nothing_to_explain_and_nothing_to_serve(finished: Any, tmp_path: Path) -> None:
    yard = finished.elsewhere(tmp_path / "store")
    assert "ArtifactError: no such run: latest" in refused(yard("why", check=False))
    assert "PromotionError: no champion" in refused(yard("serve", check=False, timeout=60))
    assert len(lines(yard("status"))) == 1


def test_doctor_finds_this_machine_healthy(finished: Any) -> None:
    answer = lines(finished("doctor"))
    assert all(line.startswith("ok ") for line in answer), answer
    assert {line.split()[1] for line in answer} >= {"python", "versions", "store", "disk", "memory", "cores", "gpu", "prefect", "ray"}
    assert "champions: 2" in next(line for line in answer if line.split()[1] == "registry")


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_doctor_names_the_remedy_of_a_store_that_cannot_be_written(finished: Any, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    answer = finished.elsewhere(tmp_path / "file" / below)("doctor", check=False)
    assert answer.returncode == 1
    store = next(line for line in lines(answer) if line.split()[1] == "store")
    assert store.startswith("BAD")
    assert "set TRAINYARD_HOME to a folder" in store
    assert "Traceback" not in answer.stderr


@pytest.fixture
def address() -> Iterator[str]:
    """Something that says 200 at /api/health and 404 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def found(what: str, folder: Path) -> doctor.Finding:
    return next(finding for finding in doctor.examine(Store(folder)) if finding.what == what)


def test_doctor_says_which_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PINNED", ("torch", "no-such-library"))
    finding = found("versions", tmp_path)
    assert (finding.fact, finding.remedy) == ("no-such-library is missing", "pip install -c infra/constraints.txt -e .")


@pytest.mark.parametrize("content", [b"", b"this is not a database" * 100])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_doctor_finds_a_broken_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, elsewhere: bool) -> None:
    path = tmp_path / "other.db" if elsewhere else tmp_path / "mlflow.db"
    path.write_bytes(content)
    if elsewhere:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    finding = found("registry", tmp_path)
    assert str(path) in finding.fact
    assert "from a backup" in finding.remedy


@pytest.mark.parametrize(
    ("variable", "what", "form"),
    [
        ("PREFECT_API_URL", "prefect", "http://user:secret@{}/api"),
        ("MLFLOW_TRACKING_URI", "registry", "http://user:secret@{}/api/"),
        ("RAY_ADDRESS", "ray", "{}"),
    ],
)
def test_doctor_asks_the_service_that_a_variable_names(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, what: str, form: str
) -> None:
    monkeypatch.setenv(variable, form.format(address))
    finding = found(what, tmp_path)
    assert finding.healthy
    assert address in finding.fact
    assert "answers" in finding.fact
    assert "secret" not in finding.fact


@pytest.mark.parametrize(
    ("variable", "what", "value"),
    [
        ("PREFECT_API_URL", "prefect", "http://user:secret@127.0.0.1:9/api"),
        ("PREFECT_API_URL", "prefect", "nonsense"),
        ("MLFLOW_TRACKING_URI", "registry", "http://user:secret@127.0.0.1:9"),
        ("RAY_ADDRESS", "ray", "127.0.0.1:9"),
        ("RAY_ADDRESS", "ray", "nonsense"),
    ],
)
def test_doctor_names_the_variable_whose_service_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, what: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    finding = found(what, tmp_path)
    assert "does not answer" in finding.fact
    assert variable in finding.remedy
    assert "secret" not in finding.fact


def test_doctor_hears_a_service_that_answers_with_an_error(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://{address}/elsewhere")
    finding = found("prefect", tmp_path)
    assert not finding.healthy
    assert "answers with status 404" in finding.fact


def test_an_empty_variable_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "")
    for what in ("prefect", "ray", "registry"):
        assert found(what, tmp_path).healthy
