"""The model card: what a stranger needs to know before using the folder.

Source: Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993; metadata keys of
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.model.decoder import count_parameters


@dataclass(frozen=True)
class Family:
    """How a card speaks of an architecture."""

    words: str
    task: str  # a pipeline of the hub
    use: str  # with transformers
    optimum: str  # the class that opens the graphs
    limits: str


WRITES = "The model repeats what its training text says, true or not. Its scores describe that text and nothing else."
READS = "The model knows its training text's words and topics. Its states are features for other programs and no judgement of their own."
TO_WRITE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))"""
TO_FILL = """from transformers import pipeline

print(pipeline("fill-mask", ".")("Once upon a <mask>"))"""
TO_JUDGE = """from transformers import AutoModelForPreTraining, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForPreTraining.from_pretrained(".")
ids = tokenizer("Once upon a banana", return_tensors="pt")
print(model(**ids).logits > 0)  # True where a token looks replaced"""
TO_FILL_SPANS = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSeq2SeqLM.from_pretrained(".")
ids = tokenizer("Once upon <extra_id_0> there was", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))"""
TO_OPEN = """from optimum.onnxruntime import {0}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = {0}.from_pretrained(".")  # from here on as with transformers"""

FAMILIES: Mapping[str, Family] = {
    "decoder": Family("Llama-style decoder", "text-generation", TO_WRITE, "ORTModelForCausalLM", WRITES),
    "gpt2": Family("GPT-2", "text-generation", TO_WRITE, "ORTModelForCausalLM", WRITES),
    "moe": Family("mixture of experts, Llama-style", "text-generation", TO_WRITE, "ORTModelForCausalLM", WRITES),
    "encoder": Family("BERT-style encoder", "fill-mask", TO_FILL, "ORTModelForMaskedLM", READS),
    "electra": Family("ELECTRA discriminator", "feature-extraction", TO_JUDGE, "ORTModelForFeatureExtraction", READS),
    "encoder_decoder": Family("T5-style encoder and decoder", "text2text-generation", TO_FILL_SPANS, "ORTModelForSeq2SeqLM", WRITES),
}


def write_card(
    model: Any, folder: Path, card: Mapping[str, Any], variants: Sequence[Mapping[str, object]] = (), *, library: str = "transformers"
) -> None:
    """Write README.md from `{"name": …, "metadata": {license, language, tags, …}, "facts": {label: value, …}, "limits": […]}`.

    `metadata` is the YAML block that model hubs index; `facts` become a table (data, lineage, training); each of
    `variants` is a row of figures of one file. `library` is what the folder is for: transformers or optimum.
    """
    family = FAMILIES[model.config.architecture]
    metadata = {"library_name": library, "pipeline_tag": family.task, **card.get("metadata", {})}
    front = yaml.safe_dump(metadata, sort_keys=True, allow_unicode=True)
    facts = {**_sizes(model, family), **card.get("facts", {})}
    use = family.use if library == "transformers" else TO_OPEN.format(family.optimum)
    parts = [
        f"# {card['name']}",
        _table([("", ""), *facts.items()]),
        *(["## Files", _table([tuple(variants[0]), *(tuple(row.values()) for row in variants)])] if variants else []),
        f"## Use\n\n```python\n{use}\n```",
        "## Limits",
        "\n".join(f"- {limit}" for limit in (family.limits, *card.get("limits", ()))),
    ]
    (folder / "README.md").write_text(f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")


def _sizes(model: Any, family: Family) -> dict[str, object]:
    config = model.config
    heads = f"{config.num_heads} heads" + (f", {config.num_kv_heads} key/value heads" if hasattr(config, "num_kv_heads") else "")
    return {
        "architecture": f"{family.words}, {config.num_layers} layers, width {config.width}",
        "attention": heads,
        "parameters": f"{count_parameters(model):,}",
        "vocabulary": f"{model.vocab_size:,}",
        "context": f"{config.max_positions:,} tokens",
    }


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
