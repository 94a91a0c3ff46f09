"""The tokenizer in the files that transformers, optimum and onnxruntime-genai read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tokenizers

from llm.artifact import write_json
from llm.data.tokenizer import Tokenizer, find
from llm.data.vocabulary import converted
from llm.data.vocabulary.pieces import Pieces
from llm.data.vocabulary.symbols import ASSISTANT, CHAT, END, USER
from llm.errors import ArtifactError
from llm.model.config import ModelConfig

ENCODERS = ("encoder", "electra")
READERS = (*ENCODERS, "encoder_decoder")  # what reads a text as a whole: padding goes behind it, and nobody chats with it
MASK = "<mask>"

# A system message has no token of its own: its text opens the first question.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{% set opening = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set opening = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    f"{{{{ '{USER}' + (opening if loop.first else '') + message['content'] + '{END}' }}}}"
    "{% elif message['role'] == 'assistant' %}"
    f"{{{{ '{ASSISTANT}' + message['content'] + '{END}' }}}}"
    "{% else %}{{ raise_exception('roles are system (first only), user and assistant') }}{% endif %}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


def write_tokenizer(tokenizer_file: Path, folder: Path, config: ModelConfig, vocab_size: int) -> None:
    """Write the tokenizer's own file, tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

    Ids behind the tokenizer's own, which training added for masks or missing spans, get pieces in tokenizer.json.

    Raises: ArtifactError if the tokenizer is missing, damaged, or such that tokenizer.json can't say the same.
    """
    source, reads = read_tokenizer(tokenizer_file), config.architecture in READERS
    converted.write(source, folder)
    shutil.copyfile(find(tokenizer_file), folder / source.vocabulary.file_name)
    added = added_pieces(config.architecture, vocab_size - source.vocab_size)
    if added:
        _add(folder / "tokenizer.json", added)
    special: dict[str, Any] = {**_names(source), "additional_special_tokens": [*CHAT, *(piece for piece in added if piece != MASK)]}
    settings = _settings(source, config.max_positions, {source.vocab_size + place: piece for place, piece in enumerate(added)})
    settings |= {"padding_side": "right"} if reads else {"chat_template": CHAT_TEMPLATE}
    settings["model_input_names"] = ["input_ids", "attention_mask", *(["token_type_ids"] if config.architecture in ENCODERS else [])]
    if MASK in added:
        special["mask_token"] = MASK
    if not reads:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, **settings})


def added_pieces(architecture: str, number: int) -> tuple[str, ...]:
    """Names of the ids behind the tokenizer's own: a mask, or T5's sentinels, of which the first is the last id.

    Example:
        >>> added_pieces("encoder", 1), added_pieces("encoder_decoder", 2)
        (('<mask>',), ('<extra_id_1>', '<extra_id_0>'))
    """
    if architecture in ENCODERS and number == 1:
        return (MASK,)
    return tuple(f"<extra_id_{sentinel}>" for sentinel in reversed(range(number)))


def _add(file: Path, pieces: tuple[str, ...]) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens([tokenizers.AddedToken(piece, special=True, normalized=False) for piece in pieces])
    file.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file or a folder.

    Raises: ArtifactError if the file is missing or damaged.
    """
    try:
        return Tokenizer.load(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError("tokenizer can't be read", value=f"{path} ({error})", remedy="run tokenize again") from error


def _names(source: Tokenizer) -> dict[str, str]:
    """The special tokens by the role that they have for transformers; padding is what ends a document."""
    ids = {"unk_token": source.unknown, "bos_token": source.bos, "eos_token": source.eos, "pad_token": source.eos}
    return {role: source.vocabulary.piece(id) for role, id in ids.items() if id is not None}


def _settings(source: Tokenizer, context_tokens: int, added: dict[int, str]) -> dict[str, Any]:
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    special = {id for id in (source.unknown, source.bos, source.eos, source.user, source.assistant, source.end) if id is not None}
    pieces = {id: source.vocabulary.piece(id) for id in sorted(special)} | added
    like_llama = isinstance(source.vocabulary, Pieces) and source.vocabulary.kind == "bpe" and source.vocabulary.plain
    return {
        "tokenizer_class": "LlamaTokenizer" if like_llama else "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(id): {"content": piece, **flags} for id, piece in pieces.items()},
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "padding_side": "left",
        "model_max_length": context_tokens,
    }
