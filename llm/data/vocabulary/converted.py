"""SentencePiece vocabularies as `tokenizer.json`, which transformers and the `tokenizers` library read.

One difference is a convention of those libraries and stays: special tokens written out in a text become their ids there,
and plain pieces here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llm.data.tokenizer import Tokenizer as OurTokenizer
from llm.data.vocabulary.pieces import Pieces
from llm.data.vocabulary.symbols import CHAT, SPACE_MARK
from llm.errors import ArtifactError

PROBES = (
    " leading",
    "trailing  ",
    "a  b\tc\n\n    d",
    "naïve café ﬁne ½ Ａ",
    "日本語 🙂 e\u0301",
    "def f(x):\n        return x\n",
)


def write(tokenizer: OurTokenizer, folder: Path) -> None:
    """Write tokenizer.json.

    Raises: ArtifactError if it can't say the same as the SentencePiece model.
    """
    vocabulary = tokenizer.vocabulary
    if isinstance(vocabulary, Pieces):
        converted = convert(vocabulary)
        _check_agreement(vocabulary, converted)
        (folder / "tokenizer.json").write_text(converted.to_str(pretty=True), encoding="utf-8")
    else:
        tokenizer.save(folder)


def convert(source: Pieces) -> Tokenizer:
    """The same tokenizer for the `tokenizers` library.

    Source: the layouts that transformers gives such models (convert_slow_tokenizer.py, LlamaConverter and SpmConverter),
    https://github.com/huggingface/transformers; ids are compared with SentencePiece in tests/data/vocabulary.
    """
    tokenizer = Tokenizer(MODELS[source.kind](source))
    spaces: list[Any] = [normalizers.Replace(" ", SPACE_MARK)]
    tokenizer.normalizer = normalizers.Sequence([*([] if source.plain else [normalizers.Prepend(SPACE_MARK)]), *spaces])
    if source.kind == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE_MARK, "merged_with_next")
    elif source.kind == "unigram":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+"), "isolated")
    prefix = [] if source.plain else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix])
    special, added = _added(source)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in added])
    if source.bos is not None:
        bos = source.piece(source.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, source.bos)]
        )
    return tokenizer


def _bpe(source: Pieces) -> models.BPE:
    return models.BPE(_ids(source), merges(source), unk_token=_unknown(source), fuse_unk=True, byte_fallback=source.lossless)


def _char(source: Pieces) -> models.BPE:
    return models.BPE(_ids(source), [], unk_token=_unknown(source), fuse_unk=True, byte_fallback=source.lossless)


def _word(source: Pieces) -> models.WordLevel:
    return models.WordLevel(_ids(source), unk_token=_unknown(source))


def _unigram(source: Pieces) -> models.Unigram:
    """Pieces that no text may match have a score below that of any spelling of their names."""
    scores = [source.processor.get_score(id) for id in range(source.vocab_size)]
    never = 100 * min(scores) - 100
    silent = set(_silent(source))
    vocabulary = [(source.piece(id), never if id in silent else score) for id, score in enumerate(scores)]
    return models.Unigram(vocabulary, source.unknown, source.lossless)


MODELS: dict[str, Any] = {"bpe": _bpe, "unigram": _unigram, "char": _char, "word": _word}


def merges(source: Pieces) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, best score first.

    SentencePiece ranks a merge by the score of its result alone, so all the ways to build a piece follow one
    another.
    Source: Neural Machine Translation of Rare Words, https://arxiv.org/abs/1508.07909, section 3.2.
    """
    silent = set(_silent(source))
    scores = {source.piece(id): source.processor.get_score(id) for id in range(source.vocab_size) if id not in silent}
    by_score = sorted(scores, key=lambda piece: -scores[piece])
    splits = ((piece[:cut], piece[cut:]) for piece in by_score for cut in range(1, len(piece)))
    return [(left, right) for left, right in splits if left in scores and right in scores]


def _ids(source: Pieces) -> dict[str, int]:
    return {source.piece(id): id for id in range(source.vocab_size)}


def _unknown(source: Pieces) -> str | None:
    return None if source.unknown is None else source.piece(source.unknown)


def _silent(source: Pieces) -> list[int]:
    """Ids that no ordinary text is written with, or only byte by byte."""
    processor = source.processor
    tests = (processor.is_control, processor.is_unknown, processor.is_byte, processor.is_unused)
    return [id for id in range(source.vocab_size) if source.piece(id).lstrip(SPACE_MARK) in CHAT or any(test(id) for test in tests)]


def _added(source: Pieces) -> tuple[list[str], list[str]]:
    """Special tokens, and those that are matched as a whole but are text."""
    proto = source.proto()
    symbols = [each.piece for each in proto.pieces if each.type == each.USER_DEFINED]
    silent = [each.piece for each in proto.pieces if each.type in (each.CONTROL, each.UNKNOWN)]
    return [*silent, *(piece for piece in symbols if piece in CHAT)], [piece for piece in symbols if piece not in CHAT]


def _check_agreement(source: Pieces, converted: Tokenizer) -> None:
    """Gate: both split the probes and the whole vocabulary alike; a normalisation that folds characters would show here."""
    spelled = "".join(source.piece(id).replace(SPACE_MARK, " ") for id in sorted(set(range(source.vocab_size)) - set(_silent(source))))
    for probe in (*PROBES, *([] if source.kind == "unigram" else [spelled])):
        ours, theirs = source.encode(probe), converted.encode(probe, add_special_tokens=False).ids
        if ours != theirs:
            remedy = "use a vocabulary with identity normalisation that keeps all spaces"
            raise ArtifactError(
                "tokenizer can't be exported", value=f"{probe[:40]!r} is {ours[:20]} here and {theirs[:20]} there", remedy=remedy
            )
