"""The SentencePiece tokenizer in the files that transformers, optimum and onnxruntime-genai read.

`tokenizer.json` is the same byte-pair encoding spelled out: pieces, merges in the order of their scores,
byte fallback, spaces as ▁. One difference is a convention of those libraries and stays: the control tokens
`<s>` and `</s>` written out in a text become control ids there, and plain pieces in SentencePiece.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from llm.artifact import write_json
from llm.data.tokenizer import ASSISTANT, BOS, END, SPACE_MARK, USER
from llm.data.tokenizer import Tokenizer as SentencePieceTokenizer
from llm.errors import ArtifactError

UNKNOWN_PIECE, BOS_PIECE, EOS_PIECE = CONTROL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2
CHAT = (USER, ASSISTANT, END)
PROBES = (
    " leading",
    "trailing  ",
    "a  b\tc\n\n    d",
    "naïve café ﬁne ½ Ａ",
    "日本語 🙂 e\u0301",
    f"{USER}hi{END}",
    "def f(x):\n        return x\n",
)

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


def write_tokenizer(tokenizer_model: Path, folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.model, tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

    Raises: ArtifactError if the tokenizer is missing, damaged, or trained so that tokenizer.json can't say the same.
    """
    source = read_tokenizer(tokenizer_model)
    converted = convert(source)
    _check_agreement(source, converted)
    shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    (folder / "tokenizer.json").write_text(converted.to_str(pretty=True), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), (*CONTROL, EOS_PIECE), strict=True))
    special = {**names, "additional_special_tokens": list(CHAT)}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, **_settings(source, context_tokens)})


def read_tokenizer(path: Path) -> SentencePieceTokenizer:
    """The tokenizer in a SentencePiece file.

    Raises: ArtifactError if the file is missing or damaged.
    """
    try:
        return SentencePieceTokenizer.load(path)
    except (OSError, RuntimeError) as error:
        raise ArtifactError("tokenizer can't be read", value=f"{path} ({error})", remedy="run tokenize again") from error


def _settings(source: SentencePieceTokenizer, context_tokens: int) -> dict[str, Any]:
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    special = {source.processor.piece_to_id(piece): piece for piece in (*CONTROL, *CHAT)}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {str(id): {"content": piece, **flags} for id, piece in special.items()},
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


def convert(source: SentencePieceTokenizer) -> Tokenizer:
    """The same tokenizer for the `tokenizers` library.

    Source: the layout that Llama's tokenizer has in transformers (convert_slow_tokenizer.py, LlamaConverter),
    https://github.com/huggingface/transformers; ids are compared with SentencePiece in tests/export.
    """
    vocabulary = {source.processor.id_to_piece(id): id for id in range(source.vocab_size)}
    tokenizer = Tokenizer(BPE(vocabulary, merges(source), unk_token=UNKNOWN_PIECE, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_PIECE} $A", pair=f"{BOS_PIECE} $A {BOS_PIECE}:1 $B:1", special_tokens=[(BOS_PIECE, BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in (*CONTROL, *CHAT)])
    return tokenizer


def merges(source: SentencePieceTokenizer) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, best score first.

    SentencePiece ranks a merge by the score of its result alone, so all the ways to build a piece follow one
    another.
    Source: Neural Machine Translation of Rare Words, https://arxiv.org/abs/1508.07909, section 3.2.
    """
    processor = source.processor
    silent = (processor.is_control, processor.is_unknown, processor.is_byte, processor.is_unused)
    ids = [id for id in range(source.vocab_size) if not any(test(id) for test in silent) and processor.id_to_piece(id) not in CHAT]
    scores = {processor.id_to_piece(id): processor.get_score(id) for id in ids}
    by_score = sorted(scores, key=lambda piece: -scores[piece])
    splits = ((piece[:cut], piece[cut:]) for piece in by_score for cut in range(1, len(piece)))
    return [(left, right) for left, right in splits if left in scores and right in scores]


def _check_agreement(source: SentencePieceTokenizer, converted: Tokenizer) -> None:
    """Gate: both split the probes and the whole vocabulary alike; normalisation, a dummy prefix or a unigram model would show here."""
    for probe in (*PROBES, source.decode(range(source.vocab_size))):
        ours, theirs = source.processor.encode(probe), converted.encode(probe, add_special_tokens=False).ids
        if ours != theirs:
            remedy = "train it as BPE with byte fallback, identity normalisation and no dummy prefix"
            raise ArtifactError(
                "tokenizer can't be exported", value=f"{probe[:40]!r} is {ours[:20]} here and {theirs[:20]} there", remedy=remedy
            )
