from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from llm.artifact import canonical
from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.document import Document, read_shards
from llm.data.parts import Workshop
from llm.data.sources import sql
from llm.data.sources.config import SqlSource
from llm.errors import DataError, DependencyError, RecipeError, SourceError

TEXTS = {number: f"text {number}, with ünïcode\nand a line" for number in range(1, 200)}


def database(path: Path, statement: str = "CREATE TABLE pages (id INTEGER PRIMARY KEY, text TEXT, updated TEXT)") -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    return connection


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = database(tmp_path / "corpus.db")
    connection.executemany("INSERT INTO pages VALUES (?, ?, '2026-01-01')", TEXTS.items())
    connection.commit()
    yield connection
    connection.close()


@pytest.fixture
def source(tmp_path: Path, filled: sqlite3.Connection) -> SqlSource:
    return SqlSource(url=f"sqlite:///{tmp_path}/corpus.db", table="pages", page_rows=7, piece_rows=20)


def gathered(out: Path, source: SqlSource, shop: Workshop | None = None) -> tuple[list[Document], dict[str, str]]:
    out.mkdir()
    collect(CollectConfig(sources=(source,), max_quarantined_share=1), out, shop or Workshop(out.with_name(f"{out.name}-parts")))
    quarantined = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return list(read_shards(out)), {record["id"]: record["reason"] for record in quarantined}


def seen(source: SqlSource) -> str:
    return canonical(sql.snapshot(source))


def test_every_row_is_a_document_in_the_order_of_the_ids(tmp_path: Path, source: SqlSource) -> None:
    documents, quarantined = gathered(tmp_path / "out", source)
    assert [(document.id, document.text) for document in documents] == [(f"sql:corpus/pages#{id}", text) for id, text in TEXTS.items()]
    assert not quarantined
    assert 3 < len(sql.pieces(source, tmp_path)) < 30
    other = source.model_copy(update={"page_rows": 500, "piece_rows": 1})
    assert {document.text for document in gathered(tmp_path / "other", other)[0]} == set(TEXTS.values())


def test_columns_become_facts_and_filters_choose_rows(tmp_path: Path) -> None:
    columns = "k TEXT UNIQUE, body TEXT, link TEXT, area TEXT, tongue TEXT, terms TEXT, made DATETIME, public INTEGER"
    connection = database(tmp_path / "x.db", f"CREATE TABLE t ({columns})")
    rows = [("b", "beta", "https://b", "news", "en", "CC0", "2026-01-02 03:04:05", 1), ("a", "alpha", None, None, None, None, None, 1)]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [*rows, ("c", "hidden", *[None] * 5, 0)])
    connection.execute("CREATE VIEW v AS SELECT * FROM t")
    connection.commit()
    names = {"url": "link", "domain": "area", "language": "tongue", "license": "terms", "created": "made"}
    settings: dict[str, Any] = {f"{fact}_column": column for fact, column in names.items()}
    settings |= {"id_column": "k", "text_column": "body", "only": {"public": True}, "domain": "web"}
    for table in ("t", "v", "main.t"):
        found = SqlSource(url=f"sqlite:///{tmp_path}/x.db", table=table, **settings)
        facts = {"url": "https://b", "domain": "news", "language": "en", "license": "CC0", "created": "2026-01-02 03:04:05"}
        assert gathered(tmp_path / table, found)[0] == [
            Document(f"sql:x/{table}#a", "alpha", "sql", domain="web"),
            Document(f"sql:x/{table}#b", "beta", "sql", **facts),
        ]


def test_rows_that_hold_no_text_are_quarantined(tmp_path: Path) -> None:
    connection = database(tmp_path / "x.db", "CREATE TABLE pages (id INTEGER PRIMARY KEY, text)")
    values = ["fine", None, 7, b"blob", " ", "nul\0"]
    connection.executemany("INSERT INTO pages (text) VALUES (?)", [(value,) for value in values])
    connection.execute("INSERT INTO pages (text) VALUES (CAST(x'ff41' AS TEXT))")
    connection.commit()
    documents, quarantined = gathered(tmp_path / "out", SqlSource(url=f"sqlite:///{tmp_path}/x.db", table="pages"))
    assert [document.text for document in documents] == ["fine"]
    reasons = ["no_text_field", "no_text_field", "no_text_field", "empty", "binary", "lone_surrogate"]
    assert quarantined == {f"sql:x/pages#{number}": reason for number, reason in enumerate(reasons, 2)}


@pytest.mark.parametrize("updated", [None, "updated"])
def test_another_database_behind_the_same_variable_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updated: str | None
) -> None:
    shop = Workshop(tmp_path / "parts")
    source, snapshots = SqlSource(url_variable="CORPUS_URL", table="pages", updated_column=updated), []
    for name in ("prod", "staging"):
        connection = database(tmp_path / f"{name}.db")
        connection.execute("INSERT INTO pages VALUES (1, ?, '2026-01-01')", [f"text of {name}" if updated else "the same text"])
        connection.commit()
        monkeypatch.setenv("CORPUS_URL", f"sqlite:///{tmp_path}/{name}.db")
        documents, _ = gathered(tmp_path / name, source, shop)
        assert [(each.id, each.text) for each in documents] == [(f"sql:{name}/pages#1", f"text of {name}" if updated else "the same text")]
        snapshots.append(seen(source))
    assert snapshots[0] != snapshots[1]


def test_a_database_is_identified_by_its_place_and_nothing_secret() -> None:
    urls = ["postgresql://u:hunter2@h:1/d", "postgresql://h:2/d", "postgresql://h/e", "postgresql:///d?host=g&password=hunter2&user=u"]
    identities = [canonical(sql._identity(make_url(url))) for url in urls]
    assert len(set(identities)) == 4
    assert sql._identity(make_url("postgresql://h:2/d")) == sql._identity(make_url("postgresql+psycopg://v:w@h:2/d?sslmode=require"))
    assert "hunter2" not in str(identities)
    assert '"u"' not in str(identities)


def test_a_page_is_bounded_by_its_bytes_and_a_huge_text_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = database(tmp_path / "x.db")
    texts = ["x" * 10] * 5 + ["ü" * 20_000] * 30 + ["é" * 50_001, "z" * 100_000]  # bytes: 40 000 each, then 100 002 and 100 000
    connection.executemany("INSERT INTO pages VALUES (?, ?, '')", enumerate(texts))
    connection.commit()
    fetched: list[int] = []

    def counted(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        fetched.append(sum(len(value.encode()) for value in row if isinstance(value, str)))
        return row

    opened, pages = sql._opened, list[int]()

    def watched(path: Path) -> sqlite3.Connection:
        connection = opened(path)
        connection.row_factory = counted

        def next_statement(statement: str) -> None:
            pages.append(sum(fetched))
            fetched.clear()

        connection.set_trace_callback(next_statement)
        return connection

    monkeypatch.setattr(sql, "_opened", watched)
    source = SqlSource(url=f"sqlite:///{tmp_path}/x.db", table="pages", page_bytes=100_000, max_document_bytes=100_000)
    documents, quarantined = gathered(tmp_path / "out", source)
    assert [document.text for document in documents] == [*texts[:35], texts[36]]
    assert quarantined == {"sql:x/pages#35": "too_large"}
    assert 80_000 <= max(pages) <= 101_000  # a few bytes more for the schema and the other columns


CHANGES = [
    "UPDATE pages SET text = 'other', updated = '2026-01-02' WHERE id = 100",
    "DELETE FROM pages WHERE id = 100",
    "INSERT INTO pages VALUES (1000, 'last', '2026-01-01')",
    "INSERT INTO pages VALUES (-1, 'first', '2026-01-01')",
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("updated", [None, "updated"])
def test_a_change_is_noticed_and_only_its_range_is_read_again(
    tmp_path: Path, filled: sqlite3.Connection, source: SqlSource, change: str, updated: str | None
) -> None:
    source, shop = source.model_copy(update={"updated_column": updated}), Workshop(tmp_path / "parts")
    before, pieces = seen(source), {canonical(piece.identity) for piece in sql.pieces(source, tmp_path)}
    gathered(tmp_path / "1", source, shop)
    made = {path.name for path in shop.folder.iterdir()}
    filled.execute(change)
    filled.commit()
    assert seen(source) != before
    assert len({canonical(piece.identity) for piece in sql.pieces(source, tmp_path)} - pieces) <= 1
    documents, _ = gathered(tmp_path / "2", source, shop)
    assert len({path.name for path in shop.folder.iterdir()} - made) <= 1
    rows = filled.execute("SELECT id, text FROM pages ORDER BY id").fetchall()
    assert [(document.id, document.text) for document in documents] == [(f"sql:corpus/pages#{id}", text) for id, text in rows]


def test_what_changes_nothing_changes_no_snapshot(tmp_path: Path, filled: sqlite3.Connection, source: SqlSource) -> None:
    before = seen(source)
    filled.execute("VACUUM")
    filled.execute("CREATE TABLE other (x)")
    filled.execute("UPDATE pages SET updated = 'a column that is not read'")
    filled.commit()
    assert seen(source) == before
    assert seen(source.model_copy(update={"page_rows": 1000})) == before


def test_rows_and_columns_that_change_between_listing_and_reading(tmp_path: Path, filled: sqlite3.Connection, source: SqlSource) -> None:
    listed = sql.pieces(source, tmp_path)
    filled.execute("INSERT INTO pages VALUES (1000, 'behind the last one listed', '')")
    filled.commit()
    assert sum(len(list(sql.read(source, piece.value))) for piece in listed) == len(TEXTS)
    filled.execute("UPDATE pages SET text = 'changed' WHERE id = 1")
    filled.commit()
    with pytest.raises(SourceError, match="rows have changed while they were read: pages up to") as changed:
        list(sql.read(source, listed[0].value))
    assert changed.value.transient
    filled.execute("ALTER TABLE pages RENAME COLUMN text TO body")
    filled.execute("ALTER TABLE pages ADD COLUMN text BLOB")
    with pytest.raises(RecipeError, match=r"pages\.text can't be used: it holds BLOB"):
        list(sql.read(source, listed[0].value))
    filled.execute("ALTER TABLE pages DROP COLUMN text")
    filled.execute("ALTER TABLE pages ADD COLUMN text VARCHAR(10)")
    with pytest.raises(SourceError, match="columns have changed while a table was read: pages") as altered:
        list(sql.read(source, listed[1].value))
    assert not altered.value.transient


def test_columns_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    database(tmp_path / "x.db", "CREATE TABLE pages (id REAL, n INTEGER, text TEXT, blob BLOB)").close()
    url = f"sqlite:///{tmp_path}/x.db"
    faults: list[tuple[dict[str, Any], str]] = [
        ({"table": "gone"}, r"no such table: gone; set collect\.sources\.table"),
        ({"id_column": "key"}, r"no column key in pages: id, n, text, blob; set collect\.sources\.id_column"),
        ({}, r"pages\.id can't be used: it holds REAL.*; set collect\.sources\.id_column"),
        ({"id_column": "n", "text_column": "blob"}, r"pages\.blob can't be used: it holds BLOB.*collect\.sources\.text_column"),
        ({"id_column": "n", "language_column": "n"}, r"pages\.n can't be used.*collect\.sources\.language_column"),
        ({"id_column": "n", "only": {"state": 1}}, r"no column state.*collect\.sources\.only\.state"),
    ]
    for settings, message in faults:
        with pytest.raises(RecipeError, match=message):
            sql.snapshot(SqlSource(**{"url": url, "table": "pages"} | settings))
    with pytest.raises(SourceError, match="no such database") as gone:
        sql.snapshot(SqlSource(url=f"sqlite:///{tmp_path}/gone.db", table="pages"))
    assert not gone.value.transient
    assert not (tmp_path / "gone.db").exists()


@pytest.mark.parametrize("ids", [(1, 1), (1, None)])
def test_ids_that_do_not_tell_rows_apart_are_refused(tmp_path: Path, ids: tuple[int | None, ...]) -> None:
    connection = database(tmp_path / "x.db", "CREATE TABLE pages (id INTEGER, text TEXT)")
    connection.executemany("INSERT INTO pages VALUES (?, 'text')", [(id,) for id in ids])
    connection.commit()
    with pytest.raises(DataError, match=r"pages\.id doesn't tell rows apart: 2 rows, 1 ids.*collect\.sources\.id_column"):
        sql.snapshot(SqlSource(url=f"sqlite:///{tmp_path}/x.db", table="pages"))


def test_an_empty_table_is_an_empty_corpus(tmp_path: Path) -> None:
    database(tmp_path / "x.db").close()
    with pytest.raises(DataError, match="the corpus is empty"):
        gathered(tmp_path / "out", SqlSource(url=f"sqlite:///{tmp_path}/x.db", table="pages"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@host/db",
        "postgresql://u:a@hunter2@host/db",
        "postgresql://host/db?user=u&password=hunter2",
        "postgresql://:hunter2@h/",
    ],
)
def test_a_password_in_the_recipe_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError, match=r"collect\.sources\.url_variable") as refused:
        SqlSource(url=url, table="pages")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("settings", [{}, {"url": "sqlite:///x.db", "url_variable": "X"}, {"url": "mysql://host/db"}, {"url": "sqlite://"}])
def test_a_source_names_one_database_of_a_known_kind(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"collect\.sources\.url"):
        SqlSource(table="pages", **settings)


@pytest.mark.parametrize(
    ("url", "kind"), [("", RecipeError), ("postgresql://u:hunter2@host:port/db", RecipeError), ("mysql://u:hunter2@h/d", RecipeError)]
)
def test_a_bad_variable_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str, kind: type[Exception]) -> None:
    monkeypatch.setenv("CORPUS_URL", url)
    with pytest.raises(kind) as refused:
        sql.snapshot(SqlSource(url_variable="CORPUS_URL", table="pages"))
    assert "hunter2" not in "".join(map(str, (refused.value, refused.value.__cause__)))


def test_a_database_out_of_reach_is_an_error_that_time_may_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("CORPUS_URL", f"postgresql://u:hunter2@127.0.0.1:{port}/db")
    with pytest.raises(SourceError, match="a database can't be read: db, .*refused") as refused:
        sql.snapshot(SqlSource(url_variable="CORPUS_URL", table="pages", tries=1))
    assert refused.value.transient
    assert "hunter2" not in str(refused.value)


def test_a_missing_driver_is_one_clear_error() -> None:
    attempt = (
        "import sys; sys.modules['psycopg'] = None\nfrom llm.data.sources import sql\nfrom llm.data.sources.config import SqlSource\n"
        "from llm.errors import DependencyError\n"
        "try: sql.snapshot(SqlSource(url='postgresql://u@127.0.0.1/db', table='t'))\n"
        "except DependencyError as error: print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str(
        DependencyError("no driver for PostgreSQL", value="psycopg", remedy='pip install "trainyard[postgres]"')
    )


PROGRAMS = [Path(folder) for folder in (*os.environ["PATH"].split(os.pathsep), *map(str, Path("/usr/lib/postgresql").glob("*/bin")))]


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """A PostgreSQL server of its own, whose user `yard` has the password `hunter2`; its port."""
    initdb = next((folder / "initdb" for folder in PROGRAMS if (folder / "initdb").exists()), None)
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed")
    folder = Path(tempfile.mkdtemp(prefix="trainyard-postgres-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "password").write_text("hunter2")
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # the server refuses to run as root
    if user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    data = str(folder / "data")
    options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run(
        [initdb.resolve(), "-D", data, "-U", "yard", "-A", "scram-sha-256", "--pwfile", folder / "password", "-E", "UTF8"], **options
    )
    server = subprocess.Popen(
        [initdb.resolve().with_name("postgres"), "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **user,
    )
    try:
        import psycopg

        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"postgresql://yard:hunter2@127.0.0.1:{port}/postgres").close()
                break
            threading.Event().wait(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


class Cutter:
    """A proxy before a server, which cuts a connection after so many bytes of answers, for every limit it has left."""

    def __init__(self, port: int, limits: list[int]) -> None:
        self.server, self.port, self.limits, self.cuts = socket.create_server(("127.0.0.1", 0)), port, limits, 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                limit = self.limits.pop(0) if self.limits else None
                backend = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self.pump, args=(client, backend, None), daemon=True).start()
                threading.Thread(target=self.pump, args=(backend, client, limit), daemon=True).start()

    def pump(self, here: socket.socket, there: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := here.recv(4096):
                passed += len(data)
                if limit is not None and passed > limit:
                    self.cuts += 1
                    break
                there.sendall(data)
        for each in (here, there):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.mark.long
def test_postgresql_through_a_proxy_that_cuts_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psycopg = pytest.importorskip("psycopg")
    with postgres() as port:
        direct = f"postgresql://yard:hunter2@127.0.0.1:{port}/postgres"
        ids = sorted(uuid.uuid5(uuid.NAMESPACE_URL, str(number)) for number in TEXTS)
        with psycopg.connect(direct) as connection:
            connection.execute("CREATE TABLE pages (id uuid PRIMARY KEY, text text, made timestamptz, score real)")
            for id, text in zip(ids, TEXTS.values(), strict=True):
                connection.execute("INSERT INTO pages VALUES (%s, %s, '2026-01-02 03:04:05+02')", (id, text))
        monkeypatch.setenv("CORPUS_URL", direct)
        source = SqlSource(url_variable="CORPUS_URL", table="public.pages", created_column="made", page_rows=7, piece_rows=20)
        expected, _ = gathered(tmp_path / "direct", source)
        assert [(each.id, each.text) for each in expected] == [
            (f"sql:postgres/public.pages#{id}", text) for id, text in zip(ids, TEXTS.values(), strict=True)
        ]
        assert {each.created for each in expected} == {"2026-01-02T01:04:05+00:00"}
        before = seen(source)
        cutter = Cutter(port, [10_000, 14_000, 9_000, 12_000, 20_000])
        monkeypatch.setenv("CORPUS_URL", f"postgresql://yard:hunter2@127.0.0.1:{cutter.server.getsockname()[1]}/postgres")
        for attempt in range(10):
            with contextlib.suppress(SourceError):
                documents, _ = gathered(tmp_path / f"cut {attempt}", source)
                break
        assert cutter.cuts >= 3
        assert documents == expected
        assert json.loads(seen(source))["ranges"] == json.loads(before)["ranges"]
        with pytest.raises(RecipeError, match=r"pages\.score can't be used: it holds REAL"):
            sql.snapshot(source.model_copy(update={"text_column": "score"}))
        listed = sql.pieces(source, tmp_path)
        assert "hunter2" not in canonical([piece.identity for piece in listed]) + repr(pickle.dumps(listed)) + source.model_dump_json()
        with psycopg.connect(direct) as connection:
            connection.execute("ALTER TABLE pages ALTER COLUMN text TYPE varchar(500)")
        with pytest.raises(SourceError, match="columns have changed"):
            list(sql.read(source, listed[0].value))
        monkeypatch.setenv("CORPUS_URL", direct.replace("hunter2", "wrong-hunter"))
        with pytest.raises(SourceError, match="password authentication failed") as refused:
            sql.snapshot(source.model_copy(update={"tries": 1}))
        assert "wrong-hunter" not in str(refused.value)
