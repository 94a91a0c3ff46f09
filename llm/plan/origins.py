"""The models that a recipe names, to start from or to learn from: read by their `config.json` alone, without torch, and checked."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from llm.data.config import TokenizeConfig
from llm.errors import ArtifactError, RecipeError
from llm.model import sizes
from llm.model.config import ModelConfig, parse_model
from llm.model.pretrained_config import model_section
from llm.train.config import TrainConfig

EXACT = ("bpe", "unigram")  # vocabularies that are learned to exactly `tokenize.vocab_size` ids; the others may end with fewer


def check(train: TrainConfig, model: ModelConfig, tokenize: TokenizeConfig, section: str) -> None:
    """Nothing, if the initial weights and the teacher of a training are there and fit the recipe, as far as their sizes tell.

    Raises: ArtifactError if one is missing or unreadable, RecipeError if it has another architecture, other sizes or another vocabulary.
    """
    if train.initial:
        _check_initial(train.initial, model, tokenize, f"{section}.initial")
    if teacher := getattr(train.objective, "teacher", None):
        _check_teacher(teacher, tokenize, f"{section}.objective.teacher")


def _check_initial(folder: str, model: ModelConfig, tokenize: TokenizeConfig, setting: str) -> None:
    _check_weights(folder, setting)
    found, vocab_size = sizes_of(folder, setting)
    if different := sizes.differences(found, model):
        raise RecipeError(
            "initial weights have another architecture or other sizes than the recipe's model",
            value=f"{', '.join(different)} in {folder}",
            remedy=f"set model as theirs, or {setting} to weights of this model",
        )
    needed = known_vocab_size(tokenize)
    if needed and vocab_size < needed:
        raise RecipeError(
            "initial weights have fewer token ids than the tokenizer",
            value=f"{vocab_size} instead of {needed} in {folder}",
            remedy="set tokenize.tokenizer to theirs, which may have to have chat tokens already",
        )


def _check_teacher(folder: str, tokenize: TokenizeConfig, setting: str) -> None:
    _check_weights(folder, setting)
    (_, vocab_size), needed = sizes_of(folder, setting), known_vocab_size(tokenize)
    if needed and vocab_size != needed:
        raise RecipeError(
            "teacher has another vocabulary than the recipe's tokenizer",
            value=f"{vocab_size} instead of {needed} ids in {folder}",
            remedy=f"set {setting} to a model of this tokenizer, or tokenize.tokenizer to the teacher's",
        )


def _check_weights(folder: str, setting: str) -> None:
    if not any(Path(folder).glob("*.safetensors")):
        remedy = f"set {setting} to a folder with config.json and model.safetensors"
        raise ArtifactError(f"no model where {setting} says", value=folder, remedy=remedy)


def known_vocab_size(tokenize: TokenizeConfig) -> int | None:
    """Ids of the tokenizer, where the recipe or the file that it imports tells; None where only the text will."""
    if tokenize.tokenizer.kind == "imported":
        from llm.data.tokenizer import Tokenizer
        from llm.data.vocabulary.imported import imported

        return Tokenizer.read(imported(tokenize.tokenizer)).vocab_size
    return tokenize.vocab_size if tokenize.tokenizer.kind in EXACT else None


def sizes_of(folder: str, setting: str) -> tuple[ModelConfig, int]:
    """The `model` section and the vocabulary of the model in the folder that a setting names, ours or in Hugging Face format.

    Raises: ArtifactError if they can't be read, or llm/model can't express them.
    """
    try:
        return _read(Path(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        value, remedy = f"{folder} ({' '.join(str(error).split())})", f"set {setting} to a folder with config.json and model.safetensors"
        raise ArtifactError(f"sizes of the model that {setting} names can't be read", value=value, remedy=remedy) from error


@cache
def _read(folder: Path) -> tuple[ModelConfig, int]:
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = parse_model(document["model"]) if "model" in document else model_section(document)[1]
    return model, int(document["vocab_size"])
