"""Steps of cleaning: each looks at one document and answers with a verdict, or with the document as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.data.document import Books, Document, Verdict, write_json_lines, write_shards


@dataclass(frozen=True, slots=True)
class Edited:
    """A document that a step changed, and how much of what it changed."""

    document: Document
    edits: Mapping[str, int] = field(default_factory=dict)


Step = Callable[[Document], Edited | Verdict]  # KEEP: the document may stay as it is


def through(document: Document, steps: Sequence[Step]) -> Edited | Verdict:
    """The document after all steps, or the verdict of the first that objects.

    Example:
        >>> from dataclasses import replace
        >>> shout = lambda document: Edited(replace(document, text=document.text.upper()), {"letters": 1})
        >>> through(Document("a", "x", "files"), [shout, shout])
        Edited(document=Document(id='a', text='X', ...), edits=Counter({'letters': 2}))
    """
    edits: Counter[str] = Counter()
    for step in steps:
        outcome = step(document)
        if isinstance(outcome, Edited):
            document = outcome.document
            edits.update(outcome.edits)
        elif not outcome.keep:
            return outcome
    return Edited(document, edits)


def write_through(out: Path, documents: Iterable[Document], steps: Sequence[Step]) -> dict[str, Any]:
    """Shards of the documents that pass all steps, and `dropped.jsonl` with the others; books, and the edits of what passed."""
    books, edits, dropped = Books(), Counter[str](), list[dict[str, Any]]()
    write_shards(out, _passing(documents, steps, books, edits, dropped))
    write_json_lines(out / "dropped.jsonl", dropped)
    return {**books.to_dict(), "edits": dict(sorted((+edits).items()))}


def _passing(
    documents: Iterable[Document], steps: Sequence[Step], books: Books, edits: Counter[str], dropped: list[dict[str, Any]]
) -> Iterator[Document]:
    for document in documents:
        outcome = through(document, steps)
        if isinstance(outcome, Edited):
            books.keep()
            edits.update(outcome.edits)
            yield outcome.document
        else:
            books.drop(outcome.reason)
            dropped.append({"id": document.id, "reason": outcome.reason, "score": outcome.score})
