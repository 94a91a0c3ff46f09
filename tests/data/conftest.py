"""A small real corpus, taken through every data stage once."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import ChatConfig, CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
from llm.data.dedup import dedup
from llm.data.encode import tokenize
from llm.data.parts import Workshop
from llm.data.sources.config import FilesSource

MODULES = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-h]*.py"))
TOKENIZE = TokenizeConfig(vocab_size=1000, row_tokens=128, sample_bytes=400_000)
CHAT = ChatConfig(max_question_characters=300, max_answer_characters=250)


def write_source(folder: Path, **texts: str) -> FilesSource:
    """A folder of text files, named by key, as a source."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return FilesSource(path=str(folder))


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the finished stages, by name."""
    root = tmp_path_factory.mktemp("stages")
    folders = {name: root / name for name in ("modules", "collect", "clean", "dedup", "tokenize")}
    for folder in folders.values():
        folder.mkdir()
    for module in MODULES:
        (folders["modules"] / module.name).write_bytes(module.read_bytes())
    shop = Workshop(root / "parts")
    source = FilesSource(path=str(folders["modules"]), domain="code")
    collect(CollectConfig(sources=(source,)), folders["collect"], shop)
    clean(folders["collect"], folders["clean"], CleanConfig(), shop)
    dedup(folders["clean"], folders["dedup"], DedupConfig(validation_share=0.1, test_share=0.2), shop)
    tokenize(folders["dedup"], folders["tokenize"], TOKENIZE, shop)
    return folders
