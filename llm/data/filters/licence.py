"""Which licences a text may be learned under."""

from __future__ import annotations

import re
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
_operators = re.compile(r"\s+(OR|AND)\s+")


def judge_licence(document: Document, config: LicenceConfig) -> Verdict:
    """Drops what its licence, or the lack of one, doesn't allow to learn from.

    Source: The Stack keeps permissive licences only, https://arxiv.org/abs/2211.15533, section 2; ids and expressions are those
    of SPDX 2.3, annex D: of an OR one side has to be allowed, of an AND both.
    """
    if not (config.allow or config.deny or config.drop_unknown):
        return KEEP
    ids = alternatives(document.license)
    if not ids:
        return UNKNOWN if config.drop_unknown else KEEP
    return KEEP if any(all(_allowed(id, config) for id in together) for together in ids) else REFUSED


def alternatives(licence: str) -> list[list[str]]:
    """The ids of an expression: one list for each side of an OR; nothing if some part has no id.

    Example:
        >>> alternatives("Apache License 2.0 OR (MIT AND CC-BY-4.0)")
        [['Apache-2.0'], ['MIT', 'CC-BY-4.0']]
        >>> alternatives("see LICENSE.txt")
        []
    """
    sides = [[spdx(each) for each in side.split(" AND ")] for side in _unwrapped(licence).split(" OR ")]
    return [[id for id in side if id] for side in sides] if all(all(side) for side in sides) else []


def _unwrapped(expression: str) -> str:
    """Without the parentheses around a part of an expression; exceptions (WITH) only add permissions."""
    parts = _operators.split(re.sub(r"\s+WITH\s+[\w.-]+", "", expression))
    return "".join(f" {part} " if part in ("OR", "AND") else part.strip().removeprefix("(").removesuffix(")") for part in parts)


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
    def named(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(id.lower(), pattern.lower()) for pattern in patterns)

    return not named(config.deny) and (not config.allow or named(config.allow))
