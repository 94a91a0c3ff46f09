from __future__ import annotations

import pytest

from llm.data.document import Document
from llm.data.filters.config import LicenceConfig
from llm.data.filters.licence import alternatives, judge_licence, spdx


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
    assert alternatives("MIT OR mine") == []


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
