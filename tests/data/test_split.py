from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from scipy.stats import binomtest

from llm.data.config import DedupConfig
from llm.data.dedup import dedup
from llm.data.document import Document, read_shards, write_shards
from llm.data.parts import Workshop
from llm.data.split import SPLITS
from llm.errors import RecipeError
from tests.data.similarity import slow
from tests.data.similarity.test_sketch import family, text

SETTINGS = {"validation_share": 0.2, "test_share": 0.1}
OF_CODE = {"code": {"validation_share": 0.5, "test_share": 0.0}}


def documents() -> list[Document]:
    """300 texts of each of two domains, and 20 families with members in both."""
    singles = [Document(f"{domain}{seed}", text(seed + 1000 * (domain == "code")), "files", domain=domain)
               for domain in ("code", "text") for seed in range(300)]  # fmt: skip
    families = [Document(f"family{seed}.{n}", member, "files", domain=("code", "text")[n % 2])
                for seed in range(20) for n, member in enumerate(family(seed + 5000))]  # fmt: skip
    return singles + families


def divided(folder: Path, **settings: object) -> dict[str, tuple[str, str]]:
    """By id: split and domain."""
    out = folder / "out"
    out.mkdir()
    write_shards(folder, documents())
    dedup(folder, out, DedupConfig.model_validate(SETTINGS | settings), Workshop(folder / "parts"))
    return {each.id: (split, each.domain) for split in SPLITS for each in read_shards(out, split)}


def test_a_domain_has_shares_of_its_own(tmp_path: Path) -> None:
    found = divided(tmp_path, domain_splits=OF_CODE)
    splits = {domain: [split for id, (split, _) in found.items() if id.startswith(domain)] for domain in ("code", "text")}
    assert "test" not in splits["code"]
    for domain, split, share in (("code", "validation", 0.5), ("text", "validation", 0.2), ("text", "test", 0.1)):
        assert binomtest(splits[domain].count(split), len(splits[domain]), share).pvalue > 0.001
    books = json.loads((tmp_path / "out" / "books.json").read_text())
    for domain in ("code", "text"):
        mine = [split for split, other in found.values() if other == domain]
        assert books["splits_by_domain"][domain] == {split: mine.count(split) for split in SPLITS}


def test_relatives_of_two_domains_share_a_split(tmp_path: Path) -> None:
    found = divided(tmp_path, domain_splits=OF_CODE)
    members = [each for each in documents() if each.id.startswith("family") and each.id in found]
    pairs = [(one, two) for one, two in combinations(members, 2) if one.id.split(".")[0] == two.id.split(".")[0]]
    alike = [(one, two) for one, two in pairs if slow.jaccard(slow.shingles(one.text), slow.shingles(two.text)) >= 0.5]
    assert len([one for one, two in alike if one.domain != two.domain]) >= 10
    assert all(found[one.id][0] == found[two.id][0] for one, two in alike)


def test_other_domains_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    plain, own = divided(tmp_path / "one"), divided(tmp_path / "two", domain_splits=OF_CODE)
    assert {id: place for id, place in plain.items() if id.startswith("text")} == {
        id: place for id, place in own.items() if id.startswith("text")
    }
    assert plain != own


def test_a_domain_that_nobody_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no document has this domain: cod; set dedup\.domain_splits for some of code, text"):
        divided(tmp_path, domain_splits={"cod": {"validation_share": 0.1, "test_share": 0.1}})
    with pytest.raises(ValueError, match=r"dedup\.domain_splits\.code"):
        DedupConfig.model_validate({"domain_splits": {"code": {"validation_share": 0.6, "test_share": 0.6}}})
