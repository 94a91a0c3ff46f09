"""The model card: what a stranger needs to know before using the folder.

Source: Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993; metadata keys of
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llm.model.decoder import Decoder, count_parameters


def write_card(model: Decoder, folder: Path, card: dict[str, Any]) -> None:
    """Write README.md from `{"name": …, "metadata": {license, language, tags, …}, "facts": {label: value, …}}`.

    `metadata` is the YAML block that model hubs index; `facts` become a table (scores, lineage, training).
    """
    metadata = {"library_name": "transformers", "pipeline_tag": "text-generation", **card.get("metadata", {})}
    front = yaml.safe_dump(metadata, sort_keys=True, allow_unicode=True)
    facts = {**_sizes(model), **card.get("facts", {})}
    table = "\n".join(f"| {_cell(label)} | {_cell(value)} |" for label, value in facts.items())
    body = f"# {card['name']}\n\n| | |\n|---|---|\n{table}\n\n{USE}"
    (folder / "README.md").write_text(f"---\n{front}---\n\n{body}", encoding="utf-8")


def _sizes(model: Decoder) -> dict[str, object]:
    config = model.config
    return {
        "architecture": f"Llama-style decoder, {config.num_layers} layers, width {config.width}",
        "attention": f"{config.num_heads} heads, {config.num_kv_heads} key/value heads",
        "parameters": f"{count_parameters(model):,}",
        "vocabulary": f"{model.vocab_size:,}",
        "context": f"{config.max_positions:,} tokens",
    }


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))
```

## Limits

The model repeats what its training text says, true or not. Its scores describe that text and nothing else.
"""
