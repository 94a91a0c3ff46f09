"""Data sets of Hugging Face, through `datasets`: a local folder, or the hub at a pinned commit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm.data.document import Document, Quarantined
from llm.data.hashing import fingerprints
from llm.data.parts import Piece
from llm.data.sources.config import HuggingFaceSource
from llm.data.sources.record import record_document
from llm.errors import RecipeError, SourceError

LOADERS = {".parquet": "parquet", ".jsonl": "json"}  # of `datasets`, for a file alone


def snapshot(source: HuggingFaceSource) -> dict[str, Any]:
    """The commit of a hub data set; name, size and sha256 of the files of a local one."""
    if not is_local(source):
        return {"kind": source.kind, "path": source.path, "revision": source.revision}
    root = _root(source)
    files = ((path.relative_to(root.parent).as_posix(), path) for path in root.rglob("*") if path.is_file())
    return {"kind": source.kind, "files": fingerprints(files)}


def pieces(source: HuggingFaceSource, home: Path) -> list[Piece]:
    """The files of a local data set, one by one; one that is capped, saved to disk or on the hub in one piece."""
    files = _files(source)
    if not files:
        return [Piece(None, snapshot(source))]
    starts = accumulate((_rows(path) for path in files[:-1]), initial=0)
    known = fingerprints((str(number), path) for number, path in enumerate(files))
    content = {each["path"]: each["sha256"] for each in known}
    return [
        Piece((str(path), start), [content[str(number)], start]) for number, (path, start) in enumerate(zip(files, starts, strict=True))
    ]


def read(source: HuggingFaceSource, piece: tuple[str, int] | None) -> Iterator[Document | Quarantined]:
    """The records in the data set's order, up to the caps. Ids are `huggingface:<name>/<split>#<number>`."""
    name = _root(source).name if is_local(source) else source.path
    prefix = "/".join(part for part in (name, source.name, source.split) if part)
    path, start = piece or (None, 0)
    size_bytes = 0
    for number, record in enumerate(islice(_records(source, path), source.max_documents), start):
        id = f"huggingface:{prefix}#{number}"
        found = record_document(source, id, record, text_field=source.text_field)
        size_bytes += len(found.text.encode(errors="replace")) if isinstance(found, Document) else 0
        if source.max_bytes and size_bytes > source.max_bytes:
            return
        yield found


def is_local(source: HuggingFaceSource) -> bool:
    """Whether it is a folder: its section has refused a data set of the hub without a commit, and a folder with one."""
    return source.revision is None


def _files(source: HuggingFaceSource) -> list[Path]:
    """The files of the split, in the order in which `datasets` reads them; none if they can't be read one by one."""
    if not is_local(source) or _is_saved(source) or source.max_documents or source.max_bytes:
        return []
    import datasets

    with _named_errors(source):
        builder = datasets.load_dataset_builder(str(_root(source)), source.name)
        found = [Path(path) for path in (builder.config.data_files or {}).get(source.split, ())]
    return found if all(path.suffix in LOADERS for path in found) else []


def _rows(path: Path) -> int:
    """Records in a file."""
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _records(source: HuggingFaceSource, path: str | None) -> Iterable[dict[str, Any]]:
    """Records of the split, or of one of its files. Nothing that comes with the data is executed: `datasets` from 4.0 on
    refuses loading scripts.

    A local source is always streamed, since a cached copy could outlive a changed file.

    Raises: SourceError if the hub can't be reached; RecipeError if the data set, its name or its split can't be used.
    """
    import datasets  # takes two seconds, which a cached run need not spend

    if _is_saved(source):
        saved = datasets.load_from_disk(str(_root(source)))
        return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
    with _named_errors(source):
        if path:
            return datasets.load_dataset(LOADERS[Path(path).suffix], data_files=path, split="train", streaming=True)
        place, streaming = (str(_root(source)), True) if is_local(source) else (source.path, source.streaming)
        return datasets.load_dataset(place, source.name, split=source.split, revision=source.revision, streaming=streaming)


@contextlib.contextmanager
def _named_errors(source: HuggingFaceSource) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise SourceError("the hub can't be reached", value=source.path, remedy="retry, or set collect.sources.path to a copy") from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise RecipeError("the data set can't be used", value=f"{source.path}, {error}", remedy="check collect.sources") from error


def _is_saved(source: HuggingFaceSource) -> bool:
    """Whether `save_to_disk` wrote it."""
    return is_local(source) and any((_root(source) / name).exists() for name in ("state.json", "dataset_dict.json"))


def _root(source: HuggingFaceSource) -> Path:
    """The folder of a local data set.

    Raises: SourceError if it is missing.
    """
    root = Path(source.path).expanduser().resolve()
    if not root.is_dir():
        raise SourceError("no such folder", transient=False, value=source.path, remedy="set collect.sources.path to one that exists")
    return root
