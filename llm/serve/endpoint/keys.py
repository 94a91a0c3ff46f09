"""Who may ask, and how much: keys in a file that holds only their hashes.

One JSON object per line, as `trainyard key NAME` writes it. Several keys may be valid at once, so that one can be replaced
before the other is taken away; the file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from llm.config import Section
from llm.errors import ArtifactError, RecipeError

PREFIX = "ty-"
SECRET_BYTES = 32
LONGEST_TOKEN = 256

log = logging.getLogger(__name__)


class Key(Section):
    """One line of the file. A limit of 0 is none."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0, description="read and written; a request is let in while some are left")
    concurrent: int = Field(default=0, ge=0)
    not_after: AwareDatetime | None = None


def make_key(name: str, *, days: int = 0, **limits: int) -> tuple[str, str]:
    """A fresh secret, and the line of the file that knows it; valid for some days, or for good.

    Raises: RecipeError for a name or a limit that can't be.
    """
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    not_after = datetime.now(UTC) + timedelta(days=days) if days else None
    try:
        key = Key(name=name, sha256=_digest(secret), not_after=not_after, **limits)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError("no such key", value=f"{first['loc'][0]}: {first['msg']}", remedy="change it") from error
    return secret, key.model_dump_json(exclude_defaults=True)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises: ArtifactError if the file is missing, readable by others, or a line is no key, or no key is in it.
    """
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError("keys can't be read", value=path, remedy="make the file: trainyard key NAME >> FILE") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ArtifactError("keys can be read by others", value=path, remedy=f"chmod 600 {path}")
    keys = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not keys:
        raise ArtifactError("no key in the file", value=path, remedy="make one: trainyard key NAME >> FILE")
    return keys


def _parse(path: Path, number: int, line: str) -> Key:
    try:
        return Key.model_validate(json.loads(line))
    except (ValidationError, ValueError) as error:
        raise ArtifactError("a line is no key", value=f"{path}, line {number}", remedy="write it with `trainyard key NAME`") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Keyring:
    """The keys of a file as it stands now. A change that can't be read is logged, and the keys before it stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys, self._seen = read_keys(path), self._stamp()

    def find(self, authorization: list[bytes]) -> Key | None:
        """The valid key that exactly one `Authorization: Bearer` header carries.

        Every key is compared, each in constant time, so that time tells nothing.
        """
        self._refresh()
        if len(authorization) != 1 or len(authorization[0]) > LONGEST_TOKEN:
            return None
        scheme, _, token = authorization[0].decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest, now = _digest(token.strip(" ")), datetime.now(UTC)
        matching = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return next((key for key in matching if key.not_after is None or now < key.not_after), None)

    def _refresh(self) -> None:
        if (stamp := self._stamp()) != self._seen:
            self._seen = stamp
            try:
                self._keys = read_keys(self.path)
                log.info("keys read again: %d", len(self._keys))
            except ArtifactError as error:
                log.error("the keys before the change stay valid: %s", error)

    def _stamp(self) -> tuple[int, int, int, int]:
        """What tells one state of the file from another."""
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0, 0, 0)
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
