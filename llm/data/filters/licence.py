"""Which licences a text may be learned under."""

from __future__ import annotations

import re
from collections import deque
from fnmatch import fnmatchcase

from llm.data.document import KEEP, Document, Verdict
from llm.data.filters.config import LicenceConfig

UNKNOWN = Verdict(False, "licence_unknown")
REFUSED = Verdict(False, "licence")

# SPDX ids by what projects call them, in lower case and without filler words. Source: https://spdx.org/licenses, version 3.
NAMES = {
    "mit": "MIT", "mit-0": "MIT-0", "isc": "ISC", "unlicense": "Unlicense", "0bsd": "0BSD", "zlib": "Zlib", "wtfpl": "WTFPL",
    "expat": "MIT", "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0", "asl 2.0": "Apache-2.0", "bsd": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "bsd-3": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause", "revised bsd": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause",
    "bsd-3-clause": "BSD-3-Clause", "simplified bsd": "BSD-2-Clause", "2-clause bsd": "BSD-2-Clause", "bsd 2-clause": "BSD-2-Clause",
    "bsd-2-clause": "BSD-2-Clause", "freebsd": "BSD-2-Clause", "psf": "PSF-2.0", "psf-2.0": "PSF-2.0", "python": "Python-2.0",
    "python software foundation": "PSF-2.0", "python-2.0": "Python-2.0", "mpl": "MPL-2.0", "mpl 2.0": "MPL-2.0", "mpl-2.0": "MPL-2.0",
    "mozilla public 2.0": "MPL-2.0", "epl-2.0": "EPL-2.0", "eclipse public 2.0": "EPL-2.0", "bsl-1.0": "BSL-1.0",
    "boost software 1.0": "BSL-1.0", "artistic-2.0": "Artistic-2.0", "hpnd": "HPND", "zpl 2.1": "ZPL-2.1", "zpl-2.1": "ZPL-2.1",
    "eupl-1.2": "EUPL-1.2", "public domain": "CC0-1.0", "cc0": "CC0-1.0", "cc0-1.0": "CC0-1.0", "odc-by": "ODC-By-1.0",
    "odc-by-1.0": "ODC-By-1.0", "odbl": "ODbL-1.0", "odbl-1.0": "ODbL-1.0", "gfdl": "GFDL-1.3-or-later",
    "gfdl-1.3-or-later": "GFDL-1.3-or-later",
}  # fmt: skip
_gnu = re.compile(
    r"(?:gnu )?(?P<kind>affero gpl|affero general public|lesser general public|library general public|general public|[al]?gpl)"
    r"[ -]?v?(?P<version>[123](?:\.[01])?)(?:\.0)?(?P<later>\+|[ -]or[ -](?:later|newer)|[ -]only)?"
)
GNU = {"affero gpl": "AGPL", "affero general public": "AGPL", "general public": "GPL"} | dict.fromkeys(
    ("lesser general public", "library general public"), "LGPL"
)
_creative = re.compile(
    r"(?:https?://)?(?:www\.)?(?:creativecommons\.org/licenses/|cc[ -])(?P<terms>by(?:-(?:nc|nd|sa))*)[/ -](?P<version>[1-4]\.[05])/?.*"
)
_zero = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/publicdomain/(?:zero|mark)/1\.0/?.*")
_filler = re.compile(r"\b(?:the|licen[cs]es?|licen[cs]ed|software licen[cs]e|under|version|v(?=[0-9]))\b|[\",;]|\(.*\)|osi approved ::")
_symbols = re.compile(r"([()]|(?<![^\s()])(?:AND|OR)(?![^\s()]))")
_exception = re.compile(r" WITH [\w.-]*(?:exception|syscall-note)[\w.-]*", re.IGNORECASE)
SYMBOLS = {"(", ")", "AND", "OR"}
MAX_SIDES = 1_000  # of an expression; AND over OR multiplies them

Sides = list[list[str]]


def judge_licence(document: Document, config: LicenceConfig) -> Verdict:
    """Drops what its licence, or the lack of one, doesn't allow to learn from.

    A name without an SPDX id is matched as it stands: who lists what may pass has not listed it otherwise.

    Source: The Stack keeps permissive licences only, https://arxiv.org/abs/2211.15533, section 2; ids and expressions are those
    of SPDX 2.3, annex D: of an OR one side has to be allowed, of an AND both.
    """
    if not (config.allow or config.deny or config.drop_unknown):
        return KEEP
    sides = alternatives(document.license)
    known = [side for side in sides if all(map(spdx, side))]
    if config.drop_unknown and not known:
        return UNKNOWN
    if not sides:
        return KEEP
    judged = known if config.drop_unknown else sides
    return KEEP if any(all(_allowed(id, config) for id in side) for side in judged) else REFUSED


def alternatives(licence: str) -> Sides:
    """What an expression offers: for each choice the ids that hold together, or the name where there is no id.

    Nothing for an empty field. What doesn't follow the grammar is one name.

    Example:
        >>> alternatives("Apache License 2.0 AND (MIT OR CC-BY-4.0)")
        [['Apache-2.0', 'MIT'], ['Apache-2.0', 'CC-BY-4.0']]
        >>> alternatives("see LICENSE.txt"), alternatives("MIT AND (BSD")
        ([['see LICENSE.txt']], [['MIT AND (BSD']])
    """
    name = " ".join(licence.split())
    words = deque(word.strip() for word in _symbols.split(_exception.sub("", name)) if word.strip())
    try:
        sides = _either(words) if words else []
    except (ValueError, RecursionError):
        return [[name]]
    return [[name]] if words else sides


def _either(words: deque[str]) -> Sides:
    """Takes an expression off the words: terms with OR between them.

    Raises: ValueError if there is none.
    """
    sides = _both(words)
    while words and words[0] == "OR":
        words.popleft()
        sides += _both(words)
    return sides


def _both(words: deque[str]) -> Sides:
    """Takes a term off the words: parts with AND between them, which binds more tightly."""
    sides = _part(words)
    while words and words[0] == "AND":
        words.popleft()
        others = _part(words)
        if len(sides) * len(others) > MAX_SIDES:
            raise ValueError("too many sides")
        sides = [left + right for left in sides for right in others]
    return sides


def _part(words: deque[str]) -> Sides:
    """Takes a name, or an expression in parentheses, off the words."""
    word = words.popleft() if words else ")"
    if word == "(":
        sides = _either(words)
        if not words or words.popleft() != ")":
            raise ValueError("not closed")
        return sides
    if word in SYMBOLS:
        raise ValueError("no name")
    if len(words) > 2 and words[0] == "(" and words[1] not in SYMBOLS and words[2] == ")":  # The MIT License (MIT)
        word += f" ({words[1]})"
        for _ in range(3):
            words.popleft()
    return [[spdx(word) or spdx(word.removesuffix("+")) or word]]


def spdx(name: str) -> str:
    """The SPDX id of a licence by what it is called; empty if it isn't known.

    Example:
        >>> [spdx(name) for name in ("The Apache License, Version 2.0", "GPLv3+", "cc-by-sa-4.0", "BSD", "mine")]
        ['Apache-2.0', 'GPL-3.0-or-later', 'CC-BY-SA-4.0', 'BSD-3-Clause', '']
    """
    low = name.strip().lower()
    if _zero.fullmatch(low):
        return "CC0-1.0"
    if creative := _creative.fullmatch(low):
        return f"CC-{creative['terms'].upper()}-{creative['version']}"
    plain = " ".join(_filler.sub(" ", low).split())
    if gnu := _gnu.fullmatch(plain):
        kind, version = GNU.get(gnu["kind"], gnu["kind"].upper()), gnu["version"]
        later = "or-later" if gnu["later"] and "only" not in gnu["later"] else "only"
        return f"{kind}-{version if '.' in version else version + '.0'}-{later}"
    return NAMES.get(plain, "")


def _allowed(id: str, config: LicenceConfig) -> bool:
    versionless = () if spdx(id) else (f"{id}-",)  # GPL without a version is denied by GPL-*
    return not _named((id, *versionless), config.deny) and (not config.allow or _named((id,), config.allow))


def _named(ids: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Whether one is meant by a pattern, which may itself be another name of a licence."""
    lower = [(spdx(pattern) or pattern).lower() for pattern in patterns]
    return any(fnmatchcase(id.lower(), pattern) for id in ids for pattern in lower)
