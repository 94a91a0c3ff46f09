"""Archives: the members of a .zip or .tar, one after the other, each a file to be read. Nothing is unpacked to disk."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from llm.data.document import Quarantined
from llm.data.sources.limits import Metered, Refused
from llm.data.sources.opened import BUFFER_BYTES, Opened, kind, seekable

ARCHIVES = (".zip", ".tar")
MAX_NAME_CHARACTERS, SHOWN_CHARACTERS = 4096, 200
ENCRYPTED = 1  # bit of a member's flags

Members = Iterator[Opened | Quarantined]
Wanted = Callable[[str], bool]  # is a member of this name to be read?


def zip_members(file: Opened, wanted: Wanted) -> Members:
    """Files in a .zip. One that is damaged or encrypted is quarantined, and the next one read.

    Source: APPNOTE, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
    """
    register = _Register(file, wanted)
    with zipfile.ZipFile(seekable(file)) as archive:
        for entry in archive.infolist():
            mode = entry.external_attr >> 16
            regular = stat.S_IFMT(mode) in (0, stat.S_IFREG)
            member = register.admitted(entry.filename, entry.is_dir(), regular, _zip_date(entry))
            if isinstance(member, Opened) and entry.flag_bits & ENCRYPTED:
                yield Quarantined(member.id, "encrypted")
            elif isinstance(member, Opened):
                yield from _opened_zip_member(archive, entry, member)
            elif member is not None:
                yield member


def _opened_zip_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, member: Opened) -> Members:
    try:
        stream = archive.open(entry)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        yield Quarantined(member.id, "corrupt")
        return
    with stream:
        yield _forward(member, stream)


def tar_members(file: Opened, wanted: Wanted) -> Members:
    """Files in a .tar, read from front to back.

    Source: POSIX pax, https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html.
    Raises: tarfile.ReadError where a header is damaged or the end is missing.
    """
    register = _Register(file, wanted)
    with tarfile.open(fileobj=file.stream, mode="r|", tarinfo=_StrictHeader) as archive:
        while (entry := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember every header
            member = register.admitted(entry.name, entry.isdir(), entry.isreg(), _tar_date(entry))
            stream = archive.extractfile(entry) if isinstance(member, Opened) else None
            if isinstance(member, Opened) and stream is not None:
                yield _forward(member, stream)
            elif member is not None:
                yield Quarantined(member.id, "unsafe_member") if isinstance(member, Opened) else member
        if cast(BinaryIO, archive.fileobj).read(BUFFER_BYTES).strip(b"\0"):
            raise tarfile.ReadError("something after the end")


def _forward(member: Opened, stream: IO[bytes]) -> Opened:
    """The member with its bytes, which can only be read from front to back, and are paid for."""
    return replace(member, stream=io.BufferedReader(Metered(cast(BinaryIO, stream), member.budget), BUFFER_BYTES))


class _StrictHeader(tarfile.TarInfo):
    """A header whose damage is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("damaged header") from error


@dataclass
class _Register:
    """Who may be read in an archive, and who was there before."""

    file: Opened
    wanted: Wanted
    names: set[str] = field(default_factory=set)
    count: int = 0

    def admitted(self, name: str, folder: bool, regular: bool, created: str) -> Opened | Quarantined | None:
        """The member if it is to be read, what is wrong with it, or None for what isn't wanted and does no harm.

        Raises: Refused if there are too many.
        """
        self.count += 1
        if self.count > self.file.source.limits.max_members:
            raise Refused("too_many_members")
        name = name.encode("utf-8", "backslashreplace").decode()
        leads_out = _leads_out(name)
        if folder or not (leads_out or self.wanted(name)):
            return None
        if objection := "unsafe_member" if leads_out or not regular else self._objection(name):
            return Quarantined(f"{self.file.id}!{name[:SHOWN_CHARACTERS]}#member{self.count}", objection)
        self.names.add(name)
        return replace(self.file, name=f"{self.file.name}!{name}", created=created)

    def _objection(self, name: str) -> str:
        if kind(name)[0] in ARCHIVES:
            return "nested_archive"
        return "duplicate_member" if name in self.names else ""


def _leads_out(name: str) -> bool:
    """Source: Zip Slip, https://security.snyk.io/research/zip-slip-vulnerability; CWE-22, CWE-59."""
    path = PurePosixPath(name.replace("\\", "/"))
    return len(name) > MAX_NAME_CHARACTERS or path.is_absolute() or bool({"..", "\0"} & {*path.parts, *name}) or name[1:2] == ":"


def _zip_date(entry: zipfile.ZipInfo) -> str:
    """When a member was changed, by the archive; empty if it doesn't say. In the time zone of whoever packed it."""
    try:
        when = datetime(*entry.date_time)
    except ValueError:
        return ""
    return when.isoformat() if when.year > 1980 else ""


def _tar_date(entry: tarfile.TarInfo) -> str:
    try:
        return datetime.fromtimestamp(int(entry.mtime), UTC).isoformat() if entry.mtime > 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""
