"""Keys in a file: only hashes, only for its owner, several at once, read again when it changes."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm.errors import ArtifactError, RecipeError
from llm.serve.endpoint.keys import Keyring, make_key, read_keys


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def bearer(secret: str) -> list[bytes]:
    return [f"Bearer {secret}".encode()]


def test_a_line_holds_the_hash_and_not_the_secret() -> None:
    secret, line = make_key("ci", requests_per_minute=5)
    assert json.loads(line) == {"name": "ci", "sha256": hashlib.sha256(secret.encode()).hexdigest(), "requests_per_minute": 5}
    assert secret not in line
    assert len({make_key("ci")[0] for _ in range(100)}) == 100


@pytest.mark.parametrize(("name", "limits"), [("", {}), ("a b", {}), ("x" * 65, {}), ("ci", {"concurrent": -1})])
def test_a_key_that_cannot_be_is_refused(name: str, limits: dict[str, int]) -> None:
    with pytest.raises(RecipeError):
        make_key(name, **limits)


def test_exactly_one_bearer_header_opens(tmp_path: Path) -> None:
    (first, one), (second, two) = make_key("one"), make_key("two")
    ring = Keyring(write(tmp_path / "keys", one, "", two))
    assert [ring.find(bearer(secret)).name for secret in (first, second)] == ["one", "two"]  # type: ignore[union-attr]
    assert ring.find([f"bearer  {first} ".encode()])
    for headers in ([], bearer(first) * 2, bearer(first + "x"), bearer(first.upper()), [first.encode()], [f"Basic {first}".encode()]):
        assert ring.find(headers) is None
    assert ring.find(bearer(json.loads(one)["sha256"])) is None
    assert ring.find([b"Bearer " + b"\xff" * 1_000]) is None


def test_a_key_ends_when_its_time_is_over(tmp_path: Path) -> None:
    secret, line = make_key("ci", days=1)
    ends = datetime.fromisoformat(json.loads(line)["not_after"])
    assert timedelta(hours=23) < ends - datetime.now(UTC) < timedelta(hours=25)
    assert Keyring(write(tmp_path / "keys", line)).find(bearer(secret))
    past = json.dumps(json.loads(line) | {"not_after": "2020-01-01T00:00:00Z"})
    assert Keyring(write(tmp_path / "keys", past)).find(bearer(secret)) is None


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (old, one), (fresh, two) = make_key("one"), make_key("two")
    ring = Keyring(write(tmp_path / "keys", one))
    write(tmp_path / "keys", one, two)
    assert ring.find(bearer(old))
    assert ring.find(bearer(fresh))
    replacement = write(tmp_path / "other", two)
    os.replace(replacement, tmp_path / "keys")
    assert ring.find(bearer(old)) is None
    assert ring.find(bearer(fresh))


@pytest.mark.parametrize("damage", ["no key", "world", "gone"])
def test_a_change_that_cannot_be_read_changes_nothing(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    secret, line = make_key("one")
    ring = Keyring(write(tmp_path / "keys", line))
    if damage == "world":
        (tmp_path / "keys").chmod(0o644)
    elif damage == "gone":
        (tmp_path / "keys").unlink()
    else:
        write(tmp_path / "keys", damage)
    assert ring.find(bearer(secret))
    assert "stay valid" in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys", make_key("one")[1])
    path.chmod(mode)
    with pytest.raises(ArtifactError, match="chmod 600"):
        read_keys(path)


@pytest.mark.parametrize("line", ["", "secret", "[]", '{"name": "x"}', '{"name": "x", "sha256": "short"}'])
def test_a_line_that_is_no_key_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ArtifactError, match="line 1" if line else "no key"):
        read_keys(write(tmp_path / "keys", line))


def test_the_command_writes_the_line_and_shows_the_secret_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli import key

    key("ci", tokens_per_minute=1_000)
    shown = capsys.readouterr()
    secret = shown.err.split()[-1]
    assert secret not in shown.out
    found = Keyring(write(tmp_path / "keys", shown.out)).find(bearer(secret))
    assert found is not None
    assert (found.name, found.tokens_per_minute) == ("ci", 1_000)
