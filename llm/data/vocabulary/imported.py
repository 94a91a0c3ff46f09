"""A vocabulary that someone else has learned, taken over so that a public model can be trained further."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from google.protobuf.message import DecodeError
from tokenizers import AddedToken

from llm.data.config import TokenizerConfig
from llm.data.vocabulary.pieces import ModelProto
from llm.data.vocabulary.symbols import CHAT
from llm.errors import RecipeError, SourceError

NAMES = ("tokenizer.model", "tokenizer.json")


def imported(config: TokenizerConfig) -> bytes:
    """The content of the file, with the chat tokens that it lacks behind all of its ids, which stay as they are.

    Raises: RecipeError if chat tokens are missing and the vocabulary may not grow; SourceError if the file can't be read.
    """
    path = imported_file(config)
    content = path.read_bytes()
    try:
        return _with_chat_json(content, config) if is_json(content) else _with_chat_pieces(content, config)
    except RecipeError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        remedy = "name a tokenizer.model of SentencePiece or a tokenizer.json of transformers"
        raise SourceError("tokenizer can't be read", transient=False, value=f"{path} ({error})", remedy=remedy) from error


def imported_file(config: TokenizerConfig) -> Path:
    """The file itself, or the one in the folder that the recipe names.

    Raises: SourceError if there is none.
    """
    place = Path(config.path or "").expanduser()
    path = next((place / name for name in NAMES if (place / name).is_file()), place)
    if not path.is_file():
        remedy = f"set tokenize.tokenizer.path to a {' or a '.join(NAMES)}, or to a folder that holds one"
        raise SourceError("no such tokenizer", transient=False, value=config.path, remedy=remedy)
    return path


def is_json(content: bytes) -> bool:
    """Whether this is a tokenizer.json; else it is a SentencePiece model."""
    return content.lstrip()[:1] == b"{"


def _with_chat_pieces(content: bytes, config: TokenizerConfig) -> bytes:
    proto = ModelProto.FromString(content)
    if not proto.pieces:
        raise DecodeError("it holds no piece")
    missing = _missing({each.piece for each in proto.pieces}, config)
    for symbol in missing:
        proto.pieces.add(piece=symbol, score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    return proto.SerializeToString(deterministic=True) if missing else content


def _with_chat_json(content: bytes, config: TokenizerConfig) -> bytes:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    missing = _missing(set(tokenizer.get_vocab()), config)
    tokenizer.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in missing])
    return str(tokenizer.to_str(pretty=True)).encode() if missing else content


def _missing(pieces: set[str], config: TokenizerConfig) -> list[str]:
    missing = [symbol for symbol in CHAT if symbol not in pieces]
    if missing and not config.may_grow:
        remedy = "set tokenize.tokenizer.may_grow to true, and train a model with that many token ids more"
        raise RecipeError("the imported vocabulary has no chat tokens", value=", ".join(missing), remedy=remedy)
    return missing
