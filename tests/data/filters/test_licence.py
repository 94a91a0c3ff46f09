from __future__ import annotations

import pytest

from llm.data.document import Document
from llm.data.filters.config import LicenceConfig
from llm.data.filters.licence import NAMES, alternatives, judge_licence, spdx


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("MIT License", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Apache License 2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("GNU General Public License v3.0", "GPL-3.0-only"),
        ("GNU General Public License v2 or later", "GPL-2.0-or-later"),
        ("GPL-3.0+", "GPL-3.0-or-later"),
        ("GPL-3.0-or-later", "GPL-3.0-or-later"),
        ("LGPLv2.1", "LGPL-2.1-only"),
        ("AGPL-3.0", "AGPL-3.0-only"),
        ("GNU Lesser General Public License v3.0", "LGPL-3.0-only"),
        ("Python Software Foundation License", "PSF-2.0"),
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC-BY-SA-4.0"),
        ("cc-by-nc-nd-3.0", "CC-BY-NC-ND-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("all rights reserved", ""),
        ("", ""),
    ],
)
def test_licences_have_one_name(name: str, id: str) -> None:
    assert spdx(name) == id


def kept(licence: str, **settings: object) -> bool:
    return judge_licence(Document("a", "text", "files", license=licence), LicenceConfig.model_validate(settings)).keep


def test_expressions() -> None:
    assert alternatives("MIT OR (Apache-2.0 AND BSD-2-Clause)") == [["MIT"], ["Apache-2.0", "BSD-2-Clause"]]
    assert alternatives("GPL-2.0-only WITH Classpath-exception-2.0") == [["GPL-2.0-only"]]
    assert alternatives("MIT OR mine") == [["MIT"], ["mine"]]
    assert alternatives("The MIT License (MIT) OR Apache-2.0+") == [["MIT"], ["Apache-2.0"]]
    assert alternatives("MIT AND BSD-2-Clause OR ISC AND(0BSD OR Zlib)") == [["MIT", "BSD-2-Clause"], ["ISC", "0BSD"], ["ISC", "Zlib"]]
    assert alternatives(" ") == []


@pytest.mark.parametrize(
    "licence",
    ["MIT AND", "OR MIT", "MIT OR (ISC", "MIT) OR ISC", "()", "(MIT) (ISC)", "MIT (AND ISC)", "MIT (ISC) Zlib", "(" * 5_000,
     "(MIT OR ISC) AND " * 30 + "MIT"],
)  # fmt: skip
def test_what_breaks_the_grammar_is_one_unknown_name(licence: str) -> None:
    assert alternatives(licence) == [[licence]]
    assert not kept(licence, allow=["MIT", "ISC"])


@pytest.mark.parametrize(
    ("licence", "settings", "keep"),
    [
        ("(MIT OR GPL-3.0-only) AND CC-BY-NC-4.0", {"allow": ["MIT"]}, False),
        ("(MIT OR GPL-3.0-only) AND ISC", {"allow": ["MIT", "ISC"]}, True),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", {"deny": ["MIT"]}, False),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", {"deny": ["GPL-*"]}, True),
        ("((MIT))", {"allow": ["MIT"]}, True),
        ("MIT OR LicenseRef-Proprietary", {"allow": ["MIT"]}, True),
        ("MIT AND LicenseRef-Proprietary", {"allow": ["MIT"]}, False),
        ("Apache-2.0 WITH LLVM-exception", {"allow": ["Apache-2.0"]}, True),
        ("Apache-2.0 WITH Commons-Clause", {"allow": ["Apache-2.0"]}, False),
    ],
)
def test_and_holds_for_either_side_of_an_or(licence: str, settings: dict[str, object], keep: bool) -> None:
    assert kept(licence, **settings) == keep


@pytest.mark.parametrize("licence", ["All rights reserved", "SSPL-1.0", "LicenseRef-Proprietary", "GPL", "cc-by-sa", "?"])
def test_a_name_without_id_passes_only_where_it_is_named(licence: str) -> None:
    assert not kept(licence, allow=["MIT", "Apache-2.0", "CC-BY-4.0"])
    assert kept(licence, allow=[licence.upper()])
    assert not kept(licence, deny=[licence.lower()])
    assert kept(licence, deny=["MIT"])


def test_denials_are_literal() -> None:
    assert not kept("SSPL-1.0", deny=["SSPL*"])
    assert not kept("sspl-1.0 OR LicenseRef-x", deny=["SSPL*", "licenseref-*"])
    assert not kept("GPL", deny=["GPL-*"])
    assert not kept("cc-by-sa", deny=["CC-BY-SA-*"])
    assert kept("MIT", deny=["MIT-*"])
    assert not kept("GPL-3.0", deny=["GPL-3.0"])


def test_an_id_is_its_own_name() -> None:
    assert {id: spdx(id) for id in NAMES.values()} == {id: id for id in NAMES.values()}


def test_allowed_denied_and_unknown() -> None:
    assert kept("GPL-3.0", allow=())
    assert kept("mit", allow=["MIT", "CC-BY-*"])
    assert kept("cc-by-4.0", allow=["MIT", "CC-BY-*"])
    assert not kept("GPL-3.0", allow=["MIT"])
    assert kept("MIT OR GPL-3.0", allow=["MIT"])
    assert not kept("MIT AND GPL-3.0", allow=["MIT"])
    assert not kept("GPLv3", deny=["GPL-*"])
    assert kept("LGPLv3", deny=["GPL-*"])
    assert kept("", allow=["MIT"])
    assert not kept("", drop_unknown=True)
    assert not kept("whatever", drop_unknown=True)
    verdict = judge_licence(Document("a", "text", "files", license="GPLv3"), LicenceConfig(deny=("GPL-*",)))
    assert verdict.reason == "licence"
