"""A model as a Hugging Face folder, so that transformers opens it as it is.

Source: the modeling and configuration files of https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.export.card import write_card
from llm.export.huggingface_config import check_expressible, document
from llm.export.huggingface_weights import weights
from llm.export.tokenizer import read_tokenizer, write_tokenizer
from llm.model.config import ModelConfig
from llm.model.pretrained_config import model_section
from llm.model.weights import write_tensors
from llm.train.objective.spans import START


def write(model: Any, tokenizer_model: Path, folder: Path, *, card: dict[str, Any]) -> None:
    """Write weights in float32, configuration, tokenizer and model card; see llm/export/card.py for `card`.

    Raises: RecipeError if no class of transformers computes what the model computes.
    """
    ids = special_ids(tokenizer_model, model.config)
    written = document(model.config, model.vocab_size, ids)
    check_expressible(model.config, written)
    write_tensors(folder / "model.safetensors", weights(model, model_section(written)[0]))
    write_config(folder, written, model.config, ids)
    write_tokenizer(tokenizer_model, folder, model.config, model.vocab_size)
    write_card(model, folder, card)


def write_config(folder: Path, written: dict[str, Any], config: ModelConfig, ids: dict[str, Any]) -> None:
    """Write config.json, and generation_config.json for a model that writes."""
    write_json(folder / "config.json", written)
    if "eos_token_id" in ids:
        write_json(folder / "generation_config.json", {**ids, "do_sample": False, "max_length": config.max_positions})


def special_ids(tokenizer_model: Path, config: ModelConfig) -> dict[str, Any]:
    """The ids that begin and fill up a text, and those that end one: the end of a document and, in a chat, of an answer."""
    tokenizer = read_tokenizer(tokenizer_model)
    if config.architecture in ("encoder", "electra"):
        return {"pad_token_id": tokenizer.eos}
    if config.architecture == "encoder_decoder":
        return {"decoder_start_token_id": START, "pad_token_id": START, "eos_token_id": tokenizer.eos}
    return {"bos_token_id": tokenizer.bos, "eos_token_id": [tokenizer.eos, tokenizer.end], "pad_token_id": tokenizer.eos}
