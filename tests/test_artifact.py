"""The store: atomic, content-addressed, verified."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import Store, canonical, content_digest, describe, sha256_of
from llm.errors import ArtifactError

FACTS: dict[str, Any] = {"parents": {}, "node": "data.clean"}


def filled(text: str) -> Any:
    def build(out: Path) -> dict[str, Any]:
        (out / "a.txt").write_text(text)
        (out / "log").mkdir()
        (out / "log" / "time.txt").write_text(str(os.getpid()))
        return {"kept": 1}

    return build


def test_produce_commits_once_and_then_finds(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def build(out: Path) -> dict[str, Any]:
        calls.append(out)
        return filled("x")(out)

    first = store.produce("clean", "k", FACTS, build)
    second = store.produce("clean", "k", FACTS, build)
    assert len(calls) == 1
    assert first.ref == second.ref
    assert first.manifest["counts"] == {"kept": 1}
    assert first.manifest["files"]["a.txt"] == {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["k"]


def test_digest_is_over_content_and_not_over_logs(tmp_path: Path) -> None:
    refs = []
    for key in ("k1", "k2"):
        build = filled("same")
        refs.append(Store(tmp_path).produce("clean", key, FACTS, lambda out, key=key, build=build: build(out) | {"n": key}).ref)
    (tmp_path / "x" / "log").mkdir(parents=True)
    (tmp_path / "x" / "a.txt").write_text("same")
    (tmp_path / "x" / "log" / "time.txt").write_text("another time")
    assert refs[0].digest == refs[1].digest == content_digest(describe(tmp_path / "x"))
    (tmp_path / "x" / "a.txt").write_text("other")
    assert refs[0].digest != content_digest(describe(tmp_path / "x"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "manifest", "torn manifest"])
def test_damage_is_detected_set_aside_and_healed(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    folder = store.produce("clean", "k", FACTS, filled("content")).path
    if damage == "flip":
        (folder / "a.txt").write_text("cOntent")
    elif damage == "truncate":
        (folder / "a.txt").write_text("cont")
    elif damage == "remove":
        (folder / "a.txt").unlink()
    elif damage == "add":
        (folder / "b.txt").write_text("new")
    elif damage == "manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    else:
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:50])
    assert store.find("clean", "k") is None
    assert list((tmp_path / "clean").glob(".corrupt-k-*"))
    healed = store.produce("clean", "k", FACTS, filled("content"))
    assert (healed.path / "a.txt").read_text() == "content"


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    def build(out: Path) -> dict[str, Any]:
        (out / "half.txt").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Store(tmp_path).produce("clean", "k", FACTS, build)
    assert list((tmp_path / "clean").iterdir()) == []


RACING = """
    import sys
    from pathlib import Path
    from llm.artifact import Store

    def build(out):
        (out / "winner.txt").write_text(sys.argv[2])
        return {"winner": sys.argv[2]}

    print(Store(Path(sys.argv[1])).produce("clean", "k", {"parents": {}, "node": "data.clean"}, build).manifest["counts"]["winner"])
"""


def test_processes_that_race_agree(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", textwrap.dedent(RACING), str(tmp_path), str(number)] for number in range(4)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    winners = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert len(winners) == 1
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["k"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from llm import artifact

    calls = 0
    def counted(original):
        def call(*arguments):
            global calls
            calls += 1
            if calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)
        return call

    artifact.fsync = counted(artifact.fsync)
    artifact.Path.rename = counted(artifact.Path.rename)
    artifact.Path.replace = counted(artifact.Path.replace)

    def build(out):
        (out / "a.txt").write_text("whole")
        (out / "b").mkdir()
        (out / "b" / "c.txt").write_text("whole too")
        return {}

    artifact.Store(Path(sys.argv[1])).produce("clean", "k", {"parents": {}, "node": "data.clean"}, build)
"""


def test_killed_at_every_step_of_a_commit(tmp_path: Path) -> None:
    """Whatever fsync or rename is the last, a reader sees the whole artifact or none, and the next attempt succeeds."""
    survived = 0
    for step in range(1, 40):
        store = Store(tmp_path / str(step))
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(store.root), str(step)]
        ended = subprocess.run(command, check=False).returncode
        found = store.find("clean", "k")
        assert found is None or sorted(found.manifest["files"]) == ["a.txt", "b/c.txt"]
        assert not list(store.root.glob("*/.corrupt-*"))
        again = store.produce("clean", "k", FACTS, filled("again"))
        assert (again.path / "a.txt").read_text() in ("whole", "again")
        assert not list(store.root.glob("*/.tmp-*"))
        if ended == 0:
            survived = step
            break
        assert ended == -signal.SIGKILL
    assert survived > 6, "the commit has fewer steps than it must have"


def test_a_store_on_a_full_disk_is_a_named_error() -> None:
    """A file system of 64 KiB, mounted in a namespace of its own."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from llm.artifact import Store
        from llm.errors import ArtifactError

        def build(out):
            (out / "big.bin").write_bytes(b"x" * 10**6)
            return {}

        root = Path(sys.argv[1])
        try:
            Store(root).produce("clean", "k", {"parents": {}, "node": "data.clean"}, build)
        except ArtifactError as error:
            print(error)
        print(sorted(path.name for path in (root / "clean").iterdir()))
    """)
    if shutil.which("unshare") is None:
        pytest.fail("this test needs util-linux's unshare")
    mount = 'mkdir -p "$1" && mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    folder = Path("/tmp") / f"trainyard-full-{os.getpid()}"
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", str(folder), sys.executable, script]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    folder.rmdir()
    assert answer.returncode == 0, answer.stderr
    assert "store can't be written (no space left on device)" in answer.stdout
    assert "trainyard gc" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_store_that_is_a_file_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="set TRAINYARD_HOME to a folder, not a file"):
        Store(tmp_path / "file").produce("clean", "k", FACTS, filled("x"))


def test_keys_are_canonical() -> None:
    assert sha256_of({"b": 1, "a": [1, "ü"]}) == sha256_of({"a": [1, "ü"], "b": 1})
    assert canonical({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    with pytest.raises(ValueError, match="Out of range float"):
        canonical(float("nan"))
