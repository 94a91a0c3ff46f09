"""Who is champion: versions of a model in the MLflow registry, decided one at a time.

A version is an export artifact with its content digest, its scores and its lineage. The alias `champion` names
the version that is served. The model's tag `history` lists the versions that held the alias, so that a roll-back
knows where to go, and counts the changes of champion, so that a decision after a roll-back is a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from llm.artifact import Store, canonical, named_errors, verified_manifest
from llm.errors import ArtifactError, DependencyError, PromotionError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
CHAMPION = "champion"
REMEMBERED = 100  # champions that the history keeps; MLflow ends a model's tag at 5,000 characters
QUIET_AND_QUICK = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own default takes four minutes
}
CHAMPIONS = "SELECT name FROM registered_model_aliases WHERE alias = ? ORDER BY name"
MODEL_TAGS = "SELECT key, value FROM registered_model_tags WHERE name = ?"
CHAMPION_TAGS = """
    SELECT version, key, value
    FROM registered_model_aliases JOIN model_version_tags USING (workspace, name, version)
    WHERE name = ? AND alias = ?
"""


@dataclass(frozen=True)
class Version:
    """One registered export. `met` is what it found when it was promoted: the champion then, and the generation."""

    name: str
    number: int
    path: Path
    digest: str
    metrics: Mapping[str, float]
    lineage: Mapping[str, Any]
    met: Mapping[str, int | None]
    rolled_back: bool = False  # somebody took it out of service: only by hand it comes back

    @classmethod
    def of(cls, name: str, number: int | str, tags: Mapping[str, str]) -> Version:
        """Raises: PromotionError if something else than Trainyard registered it."""
        missing = sorted({"export", "digest", "metrics", "lineage"} - tags.keys())
        if missing:
            remedy = "delete it, and move its alias to a version that Trainyard registered"
            raise PromotionError(f"version {number} of {name} lacks tags", value=", ".join(missing), remedy=remedy)
        metrics, lineage, met = (json.loads(tags.get(key, "{}")) for key in ("metrics", "lineage", "met"))
        return cls(name, int(number), Path(tags["export"]), tags["digest"], metrics, lineage, met, tags.get("rolled_back") == "true")

    def verify(self, remedy: str) -> None:
        """Make sure that the files of the export are those that were registered.

        Raises: PromotionError with this remedy if they are gone or have changed.
        """
        try:
            if verified_manifest(self.path)["digest"] != self.digest:
                raise ArtifactError("export is not the one that was registered", value=self.path)
        except ArtifactError as error:
            fact = f"files of {self.name} version {self.number} are gone or have changed"
            raise PromotionError(fact, value=f"{error.fact}: {error.value}", remedy=remedy) from error


@dataclass(frozen=True)
class History:
    """Champions in the order of their promotion, and how often the champion has changed."""

    champions: tuple[int, ...] = ()
    generation: int = 0

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> History:
        facts = json.loads(tags.get("history", "{}"))
        return cls(tuple(facts.get("champions", ())), facts.get("generation", 0))

    def until(self, champion: int | None) -> tuple[int, ...]:
        """The champions up to the present one: a decision that was killed may have noted one more."""
        if champion is None:
            return ()
        if champion not in self.champions:
            return (champion,)
        return self.champions[: len(self.champions) - self.champions[::-1].index(champion)]


class Registry:
    """The models at a tracking address (`sqlite:////…/mlflow.db` or `http://…`).

    Decisions hold the lock file, which the kernel frees when its holder dies. It orders the processes that share
    a file system; across machines, the concurrency limit of the deployment does.
    """

    def __init__(self, uri: str, *, lock: Path | None = None) -> None:
        self.uri, self._lock = uri, lock

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """Hold the registry: between looking at the champion and replacing it, nobody else may."""
        assert self._lock, "a registry that decides needs a lock file"
        with _held(self._lock):
            yield

    def champion(self, name: str) -> Version | None:
        """The version that is served, or None before the first promotion."""
        return self._look(name)[0]

    def champions(self) -> list[Version]:
        """The champion of every model that has one, by name."""
        if self._is_empty():
            return []
        if self.uri.startswith(SQLITE):
            names = [name for (name,) in self._query(CHAMPIONS, CHAMPION)]
        else:
            with self._named_failures():
                names = sorted(model.name for model in self._client.search_registered_models() if CHAMPION in model.aliases)
        return [champion for name in names if (champion := self.champion(name))]

    def predecessor(self, name: str) -> Version | None:
        """The version that a roll-back would make the champion, or None where there is none."""
        champion, history = self._look(name)
        earlier = history.until(champion.number)[:-1] if champion else ()
        return self._version(name, earlier[-1]) if earlier else None

    def standing(self, name: str) -> dict[str, Any]:
        """What a decision depends on: version and digest of the champion, what it met, and the generation."""
        champion, history = self._look(name)
        return {
            "version": champion.number if champion else None,
            "digest": champion.digest if champion else None,
            "met": dict(champion.met) if champion else {},
            "generation": history.generation,
        }

    def _look(self, name: str) -> tuple[Version | None, History]:
        """The champion and its history.

        A SQLite registry is read directly: every cached run looks, and importing MLflow costs it seconds.
        """
        if not self.uri.startswith(SQLITE):
            return self._look_remotely(name)
        if self._is_empty():
            return None, History()
        rows = self._query(CHAMPION_TAGS, name, CHAMPION)
        champion = Version.of(name, rows[0][0], {key: value for _, key, value in rows}) if rows else None
        return champion, History.of(dict(self._query(MODEL_TAGS, name)))

    def _query(self, statement: str, *values: str) -> list[Any]:
        location = f"{_database(self.uri).absolute().as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(location, uri=True, timeout=30)) as database:
                return database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            remedy = "restore the file from a backup, or move it away: the next promotion starts a new registry"
            raise DependencyError("the model registry can't be read", value=f"{self.uri} ({error})", remedy=remedy) from error

    def _look_remotely(self, name: str) -> tuple[Version | None, History]:
        with self._named_failures():
            models = self._client.search_registered_models(f"name = '{name}'")
        if not models:
            return None, History()
        number = models[0].aliases.get(CHAMPION)
        return self._version(name, number) if number else None, History.of(models[0].tags)

    def _is_empty(self) -> bool:
        """Whether nothing was ever registered, which a missing SQLite file says without making one."""
        return self.uri.startswith(SQLITE) and not _database(self.uri).exists()

    def versions(self, name: str) -> list[Version]:
        """Every registered version, oldest first."""
        if self._is_empty():
            return []
        with self._named_failures():
            found = self._client.search_model_versions(f"name = '{name}'", max_results=10_000)
        return sorted((Version.of(name, entry.version, entry.tags) for entry in found), key=lambda version: version.number)

    def add_candidate(self, name: str, export: Path, *, digest: str, metrics: Mapping[str, float], lineage: Mapping[str, Any]) -> Version:
        """Register an export and log its run; a digest that is registered already is found, not added again."""
        for version in self.versions(name):
            if version.digest == digest:
                return version
        tags = {"export": str(export), "digest": digest, "metrics": canonical(metrics), "lineage": canonical(lineage)}
        with self._named_failures():
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            run_id = self._log_run(name, digest, metrics, lineage)
            entry = self._client.create_model_version(name, source=f"trainyard:{export}", run_id=run_id, tags=tags)
        return Version.of(name, entry.version, tags)

    def _log_run(self, name: str, digest: str, metrics: Mapping[str, float], lineage: Mapping[str, Any]) -> str:
        """A finished MLflow run in the experiment of this name."""
        from mlflow.entities import Metric, Param

        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(experiment_id, run_name=digest[:12], tags={"digest": digest})
        self._client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, run.info.start_time, 0) for key, value in metrics.items()],
            params=[Param(key, str(value)) for key, value in lineage.items()],
        )
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def promote(self, name: str, number: int) -> Version:
        """Make a version the champion and remember the one before it; the caller is deciding.

        Raises: PromotionError if the version's files are gone or have changed.
        """
        before, history = self._look(name)
        if before and before.number == number:
            return before
        self._version(name, number).verify("bring its files back, or promote another version")
        met = {"champion": before.number if before else None, "generation": history.generation}
        with self._named_failures():
            self._client.set_model_version_tag(name, str(number), "met", canonical(met))
            self._client.set_model_version_tag(name, str(number), "rolled_back", "false")
        self._note(name, History((*history.until(met["champion"]), number)[-REMEMBERED:], history.generation + 1))
        return self._crown(name, number)

    def rollback(self, name: str) -> Version:
        """Make the champion's predecessor the champion again.

        Raises: PromotionError if the champion has none, or its files are gone or have changed.
        """
        with self.deciding():
            champion, history = self._look(name)
            earlier = history.until(champion.number)[:-1] if champion else ()
            if champion is None or not earlier:
                raise PromotionError("no earlier champion to go back to", value=name, remedy="promote another version first")
            self._version(name, earlier[-1]).verify(f"bring its files back, or promote another: trainyard promote {name} VERSION")
            with self._named_failures():
                self._client.set_model_version_tag(name, str(champion.number), "rolled_back", "true")
            version = self._crown(name, earlier[-1])
            self._note(name, History(earlier, history.generation + 1))
            return version

    def _note(self, name: str, history: History) -> None:
        facts = {"champions": list(history.champions), "generation": history.generation}
        with self._named_failures():
            self._client.set_registered_model_tag(name, "history", canonical(facts))

    def _crown(self, name: str, number: int) -> Version:
        with self._named_failures():
            self._client.set_registered_model_alias(name, CHAMPION, str(number))
        return self._version(name, number)

    def _version(self, name: str, number: int | str) -> Version:
        with self._named_failures():
            return Version.of(name, number, self._client.get_model_version(name, str(number)).tags)

    @cached_property
    def _client(self) -> MlflowClient:
        if self._is_empty():
            _create_database(_database(self.uri))
        return _connect(self.uri)

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Turn MLflow's refusals into a DependencyError that names the address."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            remedy = "check MLFLOW_TRACKING_URI and that the service answers"
            value = f"{redacted(self.uri)} ({shorten(redacted(str(error)), 200)})"
            raise DependencyError("the model registry failed", value=value, remedy=remedy) from error


def of_store(store: Store) -> Registry:
    """The registry at $MLFLOW_TRACKING_URI, or else the SQLite one inside the store."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{store.root / 'mlflow.db'}"
    return Registry(uri, lock=store.root / ".locks" / "registry")


def champions(store: Store) -> list[Version]:
    """Every champion that this store's registry knows."""
    return of_store(store).champions()


def retained(store: Store) -> list[Version]:
    """What must outlive any clean-up: every champion, and the version that a roll-back would bring back."""
    registry = of_store(store)
    kept = [(champion, registry.predecessor(champion.name)) for champion in registry.champions()]
    return [version for pair in kept for version in pair if version]


def champion_to_serve(store: Store, name: str = "") -> Version:
    """The champion of this name, or else of the newest chat model, or else of the newest model.

    Raises: PromotionError if there is none, or its files are gone or are not those that were registered.
    """
    found = [champion for champion in champions(store) if not name or champion.name == name]
    if not found:
        raise PromotionError("no champion", value=name or "in this registry", remedy="run `trainyard run lifecycle` first")
    wanted = [champion for champion in found if champion.name.endswith("-chat")] or found
    if gone := [champion for champion in wanted if not champion.path.is_dir()]:
        raise PromotionError(
            "champion's files are gone", value=gone[0].path, remedy="run the same recipe again, or choose another with --name"
        )
    chosen = max(wanted, key=lambda champion: champion.path.stat().st_mtime_ns)
    chosen.verify(f"run the same recipe again, or go back: trainyard promote --rollback {chosen.name}")
    return chosen


def redacted(text: str) -> str:
    """The text without the user names and passwords of the URLs in it.

    Example:
        >>> redacted("https://user:secret@registry.example/mlflow")
        'https://…@registry.example/mlflow'
    """
    return re.sub(r"://[^/\s]+@", "://…@", text)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE))


def _connect(uri: str) -> MlflowClient:
    """A client that keeps quiet and gives up on a dead server within seconds. The import is late: it takes seconds too."""
    for setting, value in QUIET_AND_QUICK.items():
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create_database(path: Path) -> None:
    """Make MLflow's tables in a hidden sibling and rename it: a killed run must not leave half of them.

    MLflow's migrations are not one transaction on SQLite, and one that was interrupted never starts again.
    """
    with _held(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        _connect(f"{SQLITE}{temporary}").search_registered_models(max_results=1)
        temporary.rename(path)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
