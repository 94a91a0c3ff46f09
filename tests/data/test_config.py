from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from llm.data.config import ChatConfig, CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
from llm.data.sources.config import HuggingFaceSource


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DedupConfig, {"link_threshold": 0.9}, r"set dedup\.link_threshold to at most 0\.8"),
        (DedupConfig, {"validation_share": 0.5, "test_share": 0.5}, r"set dedup\.validation_share"),
        (CleanConfig, {"min_characters": 10, "max_characters": 5}, r"set clean\.min_characters"),
        (CleanConfig, {"min_mean_word_characters": 20}, r"set clean\.min_mean_word_characters"),
        (ChatConfig, {"min_answer_characters": 5000}, r"set finetune\.chat\.min_answer_characters"),
        (ChatConfig, {"test_share": 0.97}, r"set finetune\.chat\.validation_share"),
        (CollectConfig, {"sources": [{"kind": "web", "path": "x"}]}, "'files', 'huggingface', 'installed'"),
        (HuggingFaceSource, {"path": "./x", "revision": "0" * 40}, r"leave collect\.sources\.revision"),
        (TokenizeConfig, {"vocab_size": 100}, "greater than or equal to 300"),
    ],
)
def test_impossible_values_name_the_setting(section: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**values)


def test_the_sections_need_nothing_heavy() -> None:
    heavy = {"numpy", "pyarrow", "torch", "sentencepiece", "ftfy", "trafilatura", "datasets", "prefect", "ray"}
    code = "import llm.data.config, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "llm.data.config" in loaded
    assert not heavy & set(loaded)
