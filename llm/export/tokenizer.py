"""The tokenizer in the files that transformers, optimum and onnxruntime-genai read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data.tokenizer import Tokenizer, find
from llm.data.vocabulary import converted
from llm.data.vocabulary.pieces import Pieces
from llm.data.vocabulary.symbols import ASSISTANT, CHAT, END, USER
from llm.errors import ArtifactError

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


def write_tokenizer(tokenizer_file: Path, folder: Path, *, context_tokens: int) -> None:
    """Write the tokenizer's own file, tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

    Raises: ArtifactError if the tokenizer is missing, damaged, or such that tokenizer.json can't say the same.
    """
    source = read_tokenizer(tokenizer_file)
    converted.write(source, folder)
    shutil.copyfile(find(tokenizer_file), folder / source.vocabulary.file_name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    special = {**_names(source), "additional_special_tokens": list(CHAT)}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, **_settings(source, context_tokens)})


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


def _settings(source: Tokenizer, context_tokens: int) -> dict[str, Any]:
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    special = {id for id in (source.unknown, source.bos, source.eos, source.user, source.assistant, source.end) if id is not None}
    like_llama = isinstance(source.vocabulary, Pieces) and source.vocabulary.kind == "bpe" and source.vocabulary.plain
    return {
        "tokenizer_class": "LlamaTokenizer" if like_llama else "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(id): {"content": source.vocabulary.piece(id), **flags} for id in sorted(special)},
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "padding_side": "left",
        "model_max_length": context_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
