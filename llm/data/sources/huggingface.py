"""Data sets of Hugging Face, through `datasets`: a local folder, or the hub at a pinned commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llm.data.document import Document, Quarantined
from llm.data.hashing import fingerprints
from llm.data.parts import Piece
from llm.data.sources.config import HuggingFaceSource
from llm.data.sources.record import record_document
from llm.errors import RecipeError, SourceError


def snapshot(source: HuggingFaceSource) -> dict[str, Any]:
    """The commit of a hub data set; name, size and sha256 of the files of a local one."""
    if not is_local(source):
        return {"kind": source.kind, "path": source.path, "revision": source.revision}
    root = _root(source)
    files = ((path.relative_to(root.parent).as_posix(), path) for path in root.rglob("*") if path.is_file())
    return {"kind": source.kind, "files": fingerprints(files)}


def pieces(source: HuggingFaceSource, home: Path) -> list[Piece]:
    """The data set in one piece."""
    return [Piece(None, snapshot(source))]


def read(source: HuggingFaceSource, piece: None) -> Iterator[Document | Quarantined]:
    """The records in the data set's order, up to the caps. Ids are `huggingface:<name>/<split>#<number>`."""
    name = _root(source).name if is_local(source) else source.path
    prefix = "/".join(part for part in (name, source.name, source.split) if part)
    size_bytes = 0
    for number, record in enumerate(islice(_records(source), source.max_documents)):
        id = f"huggingface:{prefix}#{number}"
        found = record_document(source.kind, id, record, text_field=source.text_field, domain=source.domain)
        size_bytes += len(found.text.encode(errors="replace")) if isinstance(found, Document) else 0
        if source.max_bytes and size_bytes > source.max_bytes:
            return
        yield found


def is_local(source: HuggingFaceSource) -> bool:
    """Whether it is a folder: its section has refused a data set of the hub without a commit, and a folder with one."""
    return source.revision is None


def _records(source: HuggingFaceSource) -> Iterable[dict[str, Any]]:
    """Records of the split. Nothing that comes with the data is executed: `datasets` from 4.0 on refuses loading scripts.

    A local source is always streamed, since a cached copy could outlive a changed file.

    Raises: SourceError if the hub can't be reached; RecipeError if the data set, its name or its split can't be used.
    """
    import datasets  # takes two seconds, which a cached run need not spend

    path = str(_root(source)) if is_local(source) else source.path
    if is_local(source) and any((Path(path) / name).exists() for name in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(path)
        return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
    streaming = source.streaming or is_local(source)
    try:
        return datasets.load_dataset(path, source.name, split=source.split, revision=source.revision, streaming=streaming)
    except ConnectionError as error:
        raise SourceError("the hub can't be reached", value=source.path, remedy="retry, or set collect.sources.path to a copy") from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise RecipeError("the data set can't be used", value=f"{source.path}, {error}", remedy="check collect.sources") from error


def _root(source: HuggingFaceSource) -> Path:
    """The folder of a local data set.

    Raises: SourceError if it is missing.
    """
    root = Path(source.path).expanduser().resolve()
    if not root.is_dir():
        raise SourceError("no such folder", transient=False, value=source.path, remedy="set collect.sources.path to one that exists")
    return root
