"""Data sets of Hugging Face: a local folder, or the hub at a pinned commit, through `datasets`.

Which files of a folder make a split, and in which order, `datasets` says; Parquet and JSON lines among them are read like
any other file, so damage costs a record or a file and not the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.document import Document, Quarantined
from llm.data.hashing import fingerprints
from llm.data.parts import Piece
from llm.data.sources import files
from llm.data.sources.config import FilesSource, HuggingFaceSource, Limits
from llm.data.sources.record import record_document
from llm.data.sources.storage import Stored, identified
from llm.errors import RecipeError, SourceError

Numbered = tuple[tuple[str, int], ...]  # files, each with the number of its first record

READABLE = (".parquet", ".jsonl")
DAMAGE: tuple[type[Exception], ...] = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, pa.ArrowException)
FINAL = (401, 403, 404, 410)  # what a server answers that time won't heal


def snapshot(source: HuggingFaceSource) -> dict[str, Any]:
    """The commit of a hub data set; name, size and sha256 of the files of a local one."""
    if not is_local(source):
        return {"kind": source.kind, "path": source.path, "revision": source.revision}
    root = _root(source)
    named = ((path.relative_to(root.parent).as_posix(), path) for path in root.rglob("*") if path.is_file())
    return {"kind": source.kind, "files": fingerprints(named)}


def pieces(source: HuggingFaceSource, home: Path) -> list[Piece]:
    """The files of a local data set, one by one; one that is capped, or that `datasets` must read, in one piece.

    That holds for the hub too: `datasets` cuts a stream into shards, but doesn't say how many records each one has, without
    which its records have no numbers.
    """
    paths = _files(source)
    starts = accumulate(map(_rows, paths[:-1]), initial=0)
    numbered = [(str(path), start) for path, start in zip(paths, starts, strict=False)]
    if not paths or source.max_documents or source.max_bytes:
        return [Piece(tuple(numbered), snapshot(source))]
    known = fingerprints((str(number), path) for number, path in enumerate(paths))
    content = {each["path"]: each["sha256"] for each in known}
    prefix = _prefix(source)
    return [Piece((each,), [prefix, content[str(number)], each[1]]) for number, each in enumerate(numbered)]


def read(source: HuggingFaceSource, piece: Numbered) -> Iterator[Document | Quarantined]:
    """The records in the data set's order, up to the caps. Ids are `huggingface:<name>/<split>#<number>`.

    Raises: SourceError if the hub can't be reached, or what `datasets` reads is damaged; RecipeError if the data set, its
    name or its split can't be used.
    """
    found = (each for path, start in piece for each in _of_file(source, path, start)) if piece else _streamed(source)
    size_bytes = 0
    for each in islice(found, source.max_documents):
        size_bytes += len(each.text.encode(errors="replace")) if isinstance(each, Document) else 0
        if source.max_bytes and size_bytes > source.max_bytes:
            return
        yield each


def _of_file(source: HuggingFaceSource, path: str, start: int) -> Iterator[Document | Quarantined]:
    """The records of a file of a local data set."""
    settings = source.model_dump(include={"text_field", "text_format", "domain", "license", "language"})
    listed = identified([Stored(Path(path).name, path, Path(path).stat().st_size)])
    found = files.read(FilesSource(path=path, limits=Limits(max_document_bytes=source.max_document_bytes), **settings), listed)
    for number, each in enumerate(found, start):
        id = f"huggingface:{_prefix(source)}#{number}"
        if isinstance(each, Document):
            meta = {name: fact for name, fact in each.meta.items() if name != "path"}
            yield replace(each, id=id, source=source.kind, meta=meta)
        else:
            yield replace(each, id=id)


def _streamed(source: HuggingFaceSource) -> Iterator[Document | Quarantined]:
    """The records that `datasets` finds.

    Raises: SourceError if it fails on the way: time may heal the hub, but no damage.
    """
    records = iter(_records(source))
    for number in count():
        try:
            record = next(records, None)
        except Exception as error:  # the hub, the network and the parsers have errors of their own
            raise _named(source, error) from error
        if record is None:
            return
        yield record_document(source, f"huggingface:{_prefix(source)}#{number}", record, text_field=source.text_field)


def _prefix(source: HuggingFaceSource) -> str:
    """What the ids of the data set begin with: its name, and those of its configuration and split."""
    name = _root(source).name if is_local(source) else source.path
    return "/".join(part for part in (name, source.name, source.split) if part)


def is_local(source: HuggingFaceSource) -> bool:
    """Whether it is a folder: its section has refused a data set of the hub without a commit, and a folder with one."""
    return source.revision is None


def _files(source: HuggingFaceSource) -> list[Path]:
    """The files of the split, in the order in which `datasets` reads them; none if they can't be read one by one."""
    if not is_local(source) or _is_saved(source):
        return []
    import datasets

    with _named_errors(source):
        builder = datasets.load_dataset_builder(str(_root(source)), source.name)
        found = [Path(path) for path in (builder.config.data_files or {}).get(source.split, ())]
    return found if all(path.suffix in READABLE for path in found) else []


def _rows(path: Path) -> int:
    """Records in a file; one, which is quarantined, if it can't be opened."""
    if path.suffix == ".parquet":
        try:
            return max(1, int(pq.read_metadata(path).num_rows))
        except (OSError, pa.ArrowException):
            return 1
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _records(source: HuggingFaceSource) -> Iterable[dict[str, Any]]:
    """Records of the split. Nothing that comes with the data is executed: `datasets` from 4.0 on refuses loading scripts.

    A local source is always streamed, since a cached copy could outlive a changed file.
    """
    import datasets  # takes two seconds, which a cached run need not spend

    with _named_errors(source):
        if _is_saved(source):
            saved = datasets.load_from_disk(str(_root(source)))
            return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
        place, streaming = (str(_root(source)), True) if is_local(source) else (source.path, source.streaming)
        return datasets.load_dataset(place, source.name, split=source.split, revision=source.revision, streaming=streaming)


@contextlib.contextmanager
def _named_errors(source: HuggingFaceSource) -> Iterator[None]:
    try:
        yield
    except (SourceError, RecipeError):
        raise
    except (LookupError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise RecipeError("the data set can't be used", value=f"{source.path}, {error}", remedy="check collect.sources") from error
    except Exception as error:  # the hub and the network have errors of their own
        raise _named(source, error) from error


def _named(source: HuggingFaceSource, error: Exception) -> SourceError:
    """What a failing data set means to a run."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
    value = f"{source.path}, {cause or error}"
    if is_local(source) or isinstance(cause, DAMAGE):
        return SourceError("a data set is damaged", transient=False, value=value, remedy="repair it, or set collect.sources.path to a copy")
    final = getattr(getattr(cause, "response", None), "status_code", None) in FINAL
    remedy = "retry, or set collect.sources.path to a copy"
    return SourceError("the hub can't be reached", transient=not final, value=value, remedy=remedy)


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
