"""Rows of a SQL table or view as documents: SQLite and PostgreSQL, through SQLAlchemy.

The table is cut into ranges of its ids. Whether a range ends with an id is drawn by the hash of that id, so what comes,
goes or changes in one range leaves the others as they are, and the next night reads only that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy import types
from sqlalchemy.engine import URL, make_url

from llm.data.document import Document, Quarantined
from llm.data.hashing import share
from llm.data.parts import Piece
from llm.data.sources.config import SqlSource
from llm.data.sources.record import FACTS, record_document
from llm.errors import DataError, DependencyError, RecipeError, SourceError

TEXT, TIME = (types.String,), (types.String, types.Date, types.DateTime)
FITTING: dict[str, tuple[type[types.TypeEngine[Any]], ...]] = {
    "id_column": (types.Integer, types.String, types.Uuid),
    "text_column": TEXT,
    "url_column": TEXT,
    "domain_column": TEXT,
    "language_column": TEXT,
    "license_column": TEXT,
    "created_column": TIME,
    "updated_column": (types.Integer, *TIME),
}


@dataclass(frozen=True)
class Range:
    """Rows with ids above `after` and up to `to`, and what they held when they were listed."""

    after: Any
    to: Any
    rows: int
    sha256: str
    columns: tuple[tuple[str, str], ...]  # of the table, with their types


def snapshot(source: SqlSource) -> dict[str, Any]:
    """The columns, and number and hash of the rows of each range: of all that is read of them, or where the source names a
    column that says when a row was updated, of that and the ids."""
    ranges = _ranges(source)
    listed = [{"path": f"{source.table} up to {each.to}", "rows": each.rows, "sha256": each.sha256} for each in ranges]
    return {
        "kind": source.kind,
        "database": _identity(_url(source)),
        "table": source.table,
        "columns": [list(each) for each in ranges[0].columns] if ranges else [],
        "ranges": listed,
    }


def pieces(source: SqlSource, home: Path) -> list[Piece]:
    """The ranges, each with about `piece_rows` rows."""
    database = _identity(_url(source))
    return [Piece(each, [database, each.columns, each.rows, each.sha256]) for each in _ranges(source)]


def read(source: SqlSource, piece: Range) -> Iterator[Document | Quarantined]:
    """A document per row of the range; a text above `max_document_bytes` is quarantined. Ids are `sql:<database>/<table>#<id>`.

    Raises: SourceError if the database can't be reached, or doesn't hold what was listed any more.
    """
    place = f"sql:{_database(_url(source))}/{source.table}"
    names, digest, rows = _columns(source), hashlib.sha256(), 0
    for row in _rows(source, list(names), after=piece.after, to=piece.to, expected=piece.columns):
        record = {setting.removesuffix("_column"): row[names.index(column)] for setting, column in _named(source).items()}
        id, too_large = f"{place}#{record['id']}", row[-1] > source.max_document_bytes
        yield Quarantined(id, "too_large") if too_large else record_document(source, id, record, text_field="text")
        digest.update(_state(source, names, row))
        rows += 1
    if (rows, digest.hexdigest()) != (piece.rows, piece.sha256):
        remedy = "retry, or read a copy of the database that nobody writes to"
        raise SourceError("rows have changed while they were read", value=f"{source.table} up to {piece.to}", remedy=remedy)


def _ranges(source: SqlSource) -> list[Range]:
    """The table as it is now, in ranges.

    Raises: RecipeError if a column is missing or holds something else; DataError if two rows have one id, or one has none.
    """
    with _reading(source) as connection:
        columns = _checked_columns(source, connection)
        _refuse_twins(source, connection)
    ranges: list[Range] = []
    after, row, rows, digest = None, None, 0, hashlib.sha256()
    names = [source.id_column, source.updated_column] if source.updated_column else _columns(source)
    for row in _rows(source, names, expected=columns):
        digest.update(_state(source, names, row))
        rows += 1
        if share(_id(source, row), "piece") < 1 / source.piece_rows:
            ranges.append(Range(after, row[0], rows, digest.hexdigest(), columns))
            after, rows, digest = row[0], 0, hashlib.sha256()
    return [*ranges, Range(after, row[0], rows, digest.hexdigest(), columns)] if row and rows else ranges


def _named(source: SqlSource) -> dict[str, str]:
    """The columns that the source names, by setting; the id first, when it was updated last."""
    settings = ("id_column", "text_column", *(f"{fact}_column" for fact in FACTS), "updated_column")
    return {setting: column for setting in settings if (column := getattr(source, setting))}


def _columns(source: SqlSource) -> list[str]:
    """What is read of a row."""
    return list(dict.fromkeys(_named(source).values()))


def _state(source: SqlSource, names: list[str], row: Sequence[Any]) -> bytes:
    """What tells whether a row has changed."""
    facts = [row[0], row[names.index(source.updated_column)]] if source.updated_column else list(row)
    return json.dumps(facts, default=str).encode() + b"\n"


def _id(source: SqlSource, row: Sequence[Any]) -> str:
    """Raises: DataError if it is text that isn't UTF-8."""
    id = str(row[0])
    if any("\ud800" <= character <= "\udfff" for character in id):
        raise DataError("an id is not UTF-8", value=ascii(id)[:80], remedy="correct it, or set collect.sources.id_column")
    return id


def _rows(
    source: SqlSource, names: list[str], *, expected: tuple[tuple[str, str], ...], after: Any = None, to: Any = None
) -> Iterator[Sequence[Any]]:
    """These columns of the rows of a range by id, then the bytes of the text if it is one of them; in one transaction.

    If its connection is lost, another one goes on after the last row: the hash of the range tells if anything changed between.

    Raises: SourceError if the table has other columns than expected, or the connection is lost `tries` times in a row.
    """
    left = source.tries
    while True:
        try:
            with _reading(source) as connection:
                if _checked_columns(source, connection) != expected:
                    remedy = "run the same command again"
                    raise SourceError("columns have changed while a table was read", transient=False, value=source.table, remedy=remedy)
                while sizes := connection.execute(_sizes(source, names, after, to, connection.dialect.name)).all():
                    for end in _page_ends(sizes, source.page_bytes):
                        yield from connection.execute(_page(source, names, after, end, connection.dialect.name)).all()
                        after, left = end, source.tries
            return
        except SourceError as error:
            left -= 1
            if not error.transient or not left:
                raise
            time.sleep(min(2.0 ** (source.tries - left - 2), 30))


def _sizes(source: SqlSource, names: list[str], after: Any, to: Any, dialect: str) -> sql.Select[Any]:
    """Id and bytes of text of the next `page_rows` rows after an id. Source: keyset pagination, https://use-the-index-luke.com/no-offset."""
    return _selected(source, [sql.column(source.id_column), _bytes_of_text(source, names, dialect)], after, to).limit(source.page_rows)


def _page_ends(sizes: Sequence[Sequence[Any]], page_bytes: int) -> Iterator[Any]:
    """The last id of each page: neighbours with no more than `page_bytes` of text, or one row that alone has more.

    Example:
        >>> list(_page_ends([("a", 5), ("b", 5), ("c", 1), ("d", 99)], page_bytes=10))
        ['b', 'c', 'd']
    """
    held_bytes, last = 0, None
    for id, size_bytes in sizes:
        if held_bytes and held_bytes + size_bytes > page_bytes:
            yield last
            held_bytes = 0
        held_bytes, last = held_bytes + size_bytes, id
    yield last


def _page(source: SqlSource, names: list[str], after: Any, to: Any, dialect: str) -> sql.Select[Any]:
    """The rows up to an id, without the texts that are too large to be fetched."""
    size_bytes = _bytes_of_text(source, names, dialect)
    text: sql.ColumnClause[Any] = sql.column(source.text_column)
    small = sql.case((size_bytes <= source.max_document_bytes, text), else_=None)
    return _selected(source, [*(small if name == source.text_column else sql.column(name) for name in names), size_bytes], after, to)


def _selected(source: SqlSource, columns: Sequence[sql.ColumnElement[Any]], after: Any, to: Any) -> sql.Select[Any]:
    """Rows of a range, by id."""
    id: sql.ColumnClause[Any] = sql.column(source.id_column)
    query = sql.select(*columns).select_from(_table(source)).order_by(id)
    query = query if after is None else query.where(id > after)
    query = query if to is None else query.where(id <= to)
    return query.where(*(sql.column(name) == value for name, value in sorted(source.only.items())))


def _bytes_of_text(source: SqlSource, names: list[str], dialect: str) -> sql.ColumnElement[Any]:
    """Zero where there is none, or it isn't one of the columns that are read."""
    if source.text_column not in names:
        return sql.literal(0)
    text: sql.ColumnClause[Any] = sql.column(source.text_column)
    if dialect == "sqlite":  # whose octet_length is younger than Python 3.11
        return sql.func.coalesce(sql.func.length(sql.cast(text, types.LargeBinary)), 0)
    return sql.func.coalesce(sql.func.octet_length(sql.cast(text, types.Text)), 0)


def _table(source: SqlSource) -> sql.TableClause:
    schema, _, name = source.table.rpartition(".")
    return sql.table(name, schema=schema or None)


def _checked_columns(source: SqlSource, connection: sql.Connection) -> tuple[tuple[str, str], ...]:
    """Name and type of every column that the source names.

    Raises: RecipeError if there is no such table or column, or one can't hold what it should.
    """
    schema, _, table = source.table.rpartition(".")
    try:
        found = {each["name"]: each["type"] for each in sql.inspect(connection).get_columns(table, schema or None)}
    except sql.exc.NoSuchTableError:
        raise RecipeError("no such table", value=source.table, remedy="set collect.sources.table to one that exists") from None
    wanted = {f"only.{name}": name for name in sorted(source.only)} | _named(source)
    for setting, column in wanted.items():
        if column not in found:
            near = ", ".join(list(found)[:20])
            raise RecipeError(f"no column {column} in {source.table}", value=near, remedy=f"set collect.sources.{setting} to one of these")
        fitting = FITTING.get(setting)
        if fitting and not isinstance(found[column], (*fitting, types.NullType)):
            fact = f"{source.table}.{column} can't be used"
            raise RecipeError(fact, value=f"it holds {found[column]!r}", remedy=f"set collect.sources.{setting} to another column")
    return tuple((column, repr(found[column])) for column in wanted.values())


def _refuse_twins(source: SqlSource, connection: sql.Connection) -> None:
    """Paging by id loses rows unless every row has an id of its own.

    Raises: DataError if one has none, or two have the same.
    """
    id: sql.ColumnClause[Any] = sql.column(source.id_column)
    count = sql.select(sql.func.count(), sql.func.count(id.distinct())).select_from(_table(source))
    rows, ids = connection.execute(count.where(*(sql.column(name) == value for name, value in sorted(source.only.items())))).one()
    if rows != ids:
        fact = f"{source.table}.{source.id_column} doesn't tell rows apart"
        raise DataError(fact, value=f"{rows} rows, {ids} ids", remedy="set collect.sources.id_column to a unique column")


@contextlib.contextmanager
def _reading(source: SqlSource) -> Iterator[sql.Connection]:
    """A transaction that sees one state of the database and writes nothing.

    Raises: SourceError if the database can't be reached, or refuses.
    """
    url = _url(source)
    try:
        with _engine(url).connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            else:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            yield connection
    except sql.exc.DBAPIError as error:
        lost = error.connection_invalidated or isinstance(error, (sql.exc.OperationalError, sql.exc.InterfaceError))
        raise SourceError(
            "a database can't be read", transient=lost, value=_said(error, url), remedy="see that collect.sources.url leads to it"
        ) from None


def _said(error: sql.exc.DBAPIError, url: URL) -> str:
    """What the database said, without the password."""
    words = " ".join(str(error.orig).split())[:300]
    return f"{_database(url)}, {words.replace(str(url.password), '***') if url.password else words}"


def _url(source: SqlSource) -> URL:
    """Where the database is; the password, if there is one, goes nowhere else.

    Raises: RecipeError if the environment variable holds no such URL.
    """
    written = source.url or os.environ.get(source.url_variable or "", "")
    try:
        url = make_url(written)
    except (sql.exc.ArgumentError, ValueError):  # whose text may hold the password
        value, remedy = source.url_variable or "collect.sources.url", "set it to a URL such as postgresql://user:password@host/database"
        raise RecipeError("no URL of a database", value=value, remedy=remedy) from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise RecipeError("unknown kind of database", value=url.get_backend_name(), remedy="name sqlite:// or postgresql://")
    return url


def _identity(url: URL) -> dict[str, Any]:
    """What tells this database from others; nothing about who reads it."""
    place = {"backend": url.get_backend_name(), "host": url.host, "port": url.port, "database": url.database}
    return place | {name: url.query[name] for name in ("host", "hostaddr", "port", "dbname", "service") if name in url.query}


def _database(url: URL) -> str:
    return Path(url.database or "").stem


def _engine(url: URL) -> sql.Engine:
    """Raises: DependencyError without the driver; SourceError if there is no such file."""
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "").expanduser().absolute()
        if not path.is_file():
            raise SourceError("no such database", transient=False, value=url.database, remedy="set collect.sources.url to one that exists")
        return sql.create_engine("sqlite://", creator=lambda: _opened(path), poolclass=sql.NullPool, hide_parameters=True)
    limits = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000}
    try:
        url = url.set(drivername="postgresql+psycopg")
        return sql.create_engine(url, poolclass=sql.NullPool, hide_parameters=True, connect_args=limits)
    except ModuleNotFoundError:
        raise DependencyError("no driver for PostgreSQL", value="psycopg", remedy='pip install "trainyard[postgres]"') from None


def _opened(path: Path) -> sqlite3.Connection:
    """A file that is only read; text that isn't UTF-8 is found out later, row by row."""
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection
