"""Instruction rows: conversations, packed so that none is cut, with a mask of what counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.config import ChatConfig
from llm.data.docstrings import conversation, functions
from llm.data.document import Books, Quarantined, read_shards, write_json_lines
from llm.data.hashing import fingerprints, share
from llm.data.labelled import existing, records
from llm.data.packing import alone, best_fit, write_mask, write_tokens
from llm.data.split import SPLITS, require_all, split_of
from llm.data.template import Conversation, Turn, encode, turns
from llm.data.tokenizer import Tokenizer
from llm.errors import DataError

SHUFFLED = "test-shuffled"

Found = tuple[str, Conversation | Quarantined]  # with its split


def snapshot(config: ChatConfig) -> dict[str, Any]:
    """What identifies the pairs beside the corpus: nothing, or the content of their file."""
    return {} if config.source == "docstrings" else {"files": fingerprints([(Path(config.source).name, _file(config))])}


def build(
    deduped: Path, tokenized: Path, out: Path, config: ChatConfig, contaminated: Callable[[str], bool] = lambda text: False
) -> dict[str, Any]:
    """Rows as the tokenize stage writes them, plus `{split}.mask` and `pairs-{split}.jsonl`, for the three splits and `test-shuffled`.

    `contaminated` says which texts a model may not learn from, because it will be judged on them. Training rows hold several
    conversations; the other splits one each, as a served model meets them.

    Raises: DataError if a split stays empty.
    """
    tokenizer = Tokenizer.load(tokenized)
    facts = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))
    facts["row_tokens"] = config.row_tokens or facts["row_tokens"]
    books = Books()
    found = _docstring_pairs(deduped, config) if config.source == "docstrings" else _file_pairs(config)
    by_split = _usable(_clean(found, contaminated, books), tokenizer, facts["row_tokens"], config, books)
    by_split[SHUFFLED] = shuffled(by_split["test"], tokenizer, facts["row_tokens"])
    facts["splits"] = {split: _write(out, split, tokenizer, conversations, facts) for split, conversations in by_split.items()}
    write_json(out / "rows.json", facts)
    write_json(out / "books.json", books.to_dict())
    return facts | {"books": books.to_dict()}


def shuffled(conversations: Sequence[Conversation], tokenizer: Tokenizer, row_tokens: int) -> list[Conversation]:
    """The same answers, each after the next conversation's question: a model that ignores questions finds them no harder.

    Where the borrowed question would push the answer out of the row, its end is cut.

    Raises: DataError if there is only one conversation.
    """
    if len(conversations) < 2:
        raise DataError("questions can't be shuffled", value=f"{len(conversations)} conversation", remedy="raise finetune.chat.test_share")
    donors = [*conversations[1:], conversations[0]]
    return [_ask(each, donor.turns[0].content, tokenizer, row_tokens) for each, donor in zip(conversations, donors, strict=True)]


def _ask(conversation: Conversation, question: str, tokenizer: Tokenizer, row_tokens: int) -> Conversation:
    """The conversation with another first question, cut until the row holds all."""
    while True:
        asked = replace(conversation, turns=(Turn("user", question), *conversation.turns[1:]))
        excess = len(encode(tokenizer, asked.turns)[0]) - row_tokens
        if excess <= 0:
            return asked
        question = question[:-excess]


def _clean(pairs: Iterable[Found], contaminated: Callable[[str], bool], books: Books) -> Iterator[Found]:
    """Those of which a model may learn; the others are in the books."""
    for split, found in pairs:
        if isinstance(found, Conversation) and contaminated("\n".join(turn.content for turn in found.turns)):
            books.drop("contaminated")
        else:
            yield split, found


def _usable(
    pairs: Iterable[Found], tokenizer: Tokenizer, row_tokens: int, config: ChatConfig, books: Books
) -> dict[str, list[Conversation]]:
    """Conversations per split that are whole, new and fit a row, in the order of their hashes, so that neighbours are strangers."""
    by_split: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    asked: set[str] = set()
    for split, found in pairs:
        if isinstance(found, Quarantined):
            books.quarantine(found.reason)
        elif reason := _objection(found, asked, tokenizer, row_tokens, config):
            books.drop(reason)
        else:
            books.keep()
            asked.add(found.turns[0].content)
            by_split[split].append(found)
    books.check()
    require_all((split for split, members in by_split.items() for _ in members), "finetune.chat")
    return {split: sorted(members, key=lambda each: share(each.id, "order")) for split, members in by_split.items()}


def _objection(found: Conversation, asked: set[str], tokenizer: Tokenizer, row_tokens: int, config: ChatConfig) -> str:
    """Why this conversation can't be learned from; empty if it can. Nothing is ever cut to fit."""
    answers = [turn.content for turn in found.turns if turn.role == "assistant"]
    if any(len(answer) < config.min_answer_characters for answer in answers):
        return "answer_too_short"
    if any(len(answer) > config.max_answer_characters for answer in answers):
        return "answer_too_long"
    if found.turns[0].content in asked:
        return "duplicate_question"
    if len(found.turns[0].content) > config.max_question_characters:
        return "question_too_long"
    return "longer_than_a_row" if len(encode(tokenizer, found.turns)[0]) > row_tokens else ""


def _docstring_pairs(deduped: Path, config: ChatConfig) -> Iterator[Found]:
    """Held-out modules first, so that of two equal questions the held-out one stays and training never sees it."""
    for split in reversed(SPLITS):
        for document in read_shards(deduped, split):
            if document.language != "python":
                continue
            try:
                for function in functions(document):
                    yield split, conversation(function, config)
            except SyntaxError:
                yield split, Quarantined(document.id, "not_python")


def _file_pairs(config: ChatConfig) -> Iterator[Found]:
    """Records of {"question", "answer"} or {"messages"}; the hash of the first question chooses the split."""
    for number, record in enumerate(records(_file(config))):
        id = f"{Path(config.source).name}#{number}"
        try:
            found = Conversation(id, "file", _record_turns(record or {}))
            digest = hashlib.sha256(found.turns[0].content.encode()).hexdigest()
        except (ValueError, KeyError, TypeError, DataError):
            yield "train", Quarantined(id, "corrupt_line")
            continue
        yield split_of(digest, validation_share=config.validation_share, test_share=config.test_share), found


def _record_turns(record: dict[str, Any]) -> tuple[Turn, ...]:
    """Raises: DataError, KeyError or TypeError if the record is no conversation that ends with an answer."""
    if "messages" not in record:
        return turns([{"role": "user", "content": record["question"]}, {"role": "assistant", "content": record["answer"]}])
    found = turns(record["messages"])
    if found[-1].role != "assistant":
        raise DataError("a conversation ends without an answer", value=len(found), remedy="end it with an assistant message")
    return found


def _file(config: ChatConfig) -> Path:
    return existing(config.source, "finetune.chat.source")


def _write(out: Path, split: str, tokenizer: Tokenizer, conversations: list[Conversation], facts: dict[str, Any]) -> dict[str, int]:
    """One split's tokens, mask, borders and pairs; returns its sizes."""
    coded = [encode(tokenizer, each.turns) for each in conversations]
    ids, mask = [np.array(each) for each, _ in coded], [np.array(each) for _, each in coded]
    row_tokens, lengths = facts["row_tokens"], np.array([len(each) for each in ids])
    pieces = best_fit(lengths, row_tokens) if split == "train" else alone(lengths, row_tokens)
    write_tokens(
        out / f"{split}.tokens", pieces, row_tokens, facts["dtype"], tokenizer.eos, lambda number, start, end: ids[number][start:end]
    )
    write_mask(out / f"{split}.mask", pieces, row_tokens, lambda number, start, end: mask[number][start:end])
    (out / f"{split}.borders").write_bytes(pieces.borders().astype("<i8").tobytes())
    write_json_lines(out / f"pairs-{split}.jsonl", map(asdict, conversations))
    tokens = pieces.rows * row_tokens + 1
    return {"rows": pieces.rows, "tokens": tokens, "documents": len(ids), "answer_tokens": int(sum(each.sum() for each in mask))}
