"""Looking back: why a stage ran, what a model descends from, what may be deleted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llm.artifact import Artifact, Store
from llm.errors import ArtifactError
from llm.plan.graph import changes, comparable, latest


def summaries(store: Store) -> list[dict[str, Any]]:
    """summary.json of every run, oldest first."""
    paths = sorted((store.root / "runs").glob("[!.]*/summary.json"))
    return [json.loads(path.read_text()) for path in paths if not path.parent.is_symlink()]


def find_run(store: Store, run_id: str) -> dict[str, Any]:
    """The summary of a run by its id, or of the `latest`.

    Raises: ArtifactError if there is no such run.
    """
    path = store.root / "runs" / run_id / "summary.json"
    if not path.is_file():
        raise ArtifactError("no such run", value=run_id, remedy="`trainyard status` lists the runs of this store")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def last_made(summary: Mapping[str, Any]) -> Path:
    """The folder of the last artifact of a run.

    Raises: ArtifactError if the run made none.
    """
    paths = [Path(stage["path"]) for stages in summary["stages"].values() for stage in stages.values()]
    if not paths:
        raise ArtifactError("run has made nothing yet", value=summary["run_id"], remedy="name an artifact, as pretrain/<key>")
    return paths[-1]


@dataclass(frozen=True)
class Explanation:
    """Why one stage of a run was computed or not."""

    node: str
    state: str
    reasons: tuple[str, ...]


def why(store: Store, run_id: str) -> list[Explanation]:
    """For each stage of a run: cached, or computed because of what differs from the artifact before it."""
    summary = find_run(store, run_id)
    explained = []
    for group, stages in summary["stages"].items():
        for name, stage in stages.items():
            reasons: tuple[str, ...] = ()
            if stage["state"] == "computed":
                artifact = committed(store, Path(stage["path"]))
                earlier = latest(store, f"{group}.{name}", before=artifact)
                reasons = changes(earlier, comparable(artifact.manifest))
            explained.append(Explanation(f"{group}.{name}", stage["state"], reasons))
    return explained


def committed(store: Store, path: Path) -> Artifact:
    """The artifact in a folder, its files unverified.

    Raises: ArtifactError if it has been deleted.
    """
    found = next((artifact for artifact in store.all() if artifact.path == path), None)
    if found is None:
        raise ArtifactError("artifact is no longer in the store", value=path, remedy="run the same command again")
    return found


def ancestors(store: Store, artifact: Artifact) -> Iterator[tuple[int, Artifact]]:
    """An artifact and all that it descends from, with the distance, nearest first and each once."""
    by_key = {(found.ref.stage, found.ref.key): found for found in store.all()}
    waiting, seen = [(0, artifact)], set()
    while waiting:
        depth, here = waiting.pop(0)
        if here.path in seen:
            continue
        seen.add(here.path)
        yield depth, here
        parents = [(parent["stage"], parent["key"]) for parent in here.manifest["parents"].values()]
        waiting += [(depth + 1, by_key[parent]) for parent in parents if parent in by_key]


@dataclass(frozen=True)
class Garbage:
    """What `gc` would delete."""

    path: Path
    bytes: int


def garbage(store: Store, *, keep_runs: int, keep: Collection[Path]) -> list[Garbage]:
    """Artifacts that neither the last completed runs nor those to keep descend from, parts that those runs haven't used,
    and what killed attempts left.

    Work folders and parts stay unless the newest run completed: the same command would continue there.
    """
    kept = {found.path: found for root in _roots(store, keep_runs, keep) for _, found in ancestors(store, root)}
    unused = [artifact.path for artifact in store.all() if artifact.path not in kept]
    patterns = ["*/.corrupt-*", "*/.tmp-*"] + ([] if _unfinished(store) else ["*/.work-*"])
    unused += [path for pattern in patterns for path in sorted(store.root.glob(pattern))]
    unused += [] if _unfinished(store) else _unused_parts(store, kept.values())
    return [Garbage(path, _freed(path)) for path in unused]


def _unused_parts(store: Store, kept: Collection[Artifact]) -> list[Path]:
    """Parts that were last used before the oldest of the artifacts that are kept was made, and what was set aside among them."""
    made = [datetime.fromisoformat(artifact.manifest["created"]).timestamp() - artifact.manifest["wall_seconds"] for artifact in kept]
    first = min(made, default=time.time())
    return [path for path in sorted(store.root.glob("*/.parts/*")) if path.stat().st_mtime < first]


def _freed(folder: Path) -> int:
    """Bytes of a folder's files, without those that another folder holds too."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(file.st_size for file in files if file.st_nlink == 1)


def _roots(store: Store, keep_runs: int, keep: Collection[Path]) -> list[Artifact]:
    completed = [summary for summary in summaries(store) if summary["state"] == "completed"]
    last = completed[-keep_runs:] if keep_runs else []
    paths = {Path(stage["path"]) for summary in last for stages in summary["stages"].values() for stage in stages.values()}
    return [artifact for artifact in store.all() if artifact.path in paths | set(keep)]


def _unfinished(store: Store) -> bool:
    return any(summary["state"] != "completed" for summary in summaries(store)[-1:])


def delete(items: list[Garbage]) -> int:
    """Delete, by a rename first so that nobody sees a half-deleted artifact; bytes freed. No run may be going on."""
    for item in items:
        hidden = item.path.with_name(f".tmp-{item.path.name.lstrip('.')}-gc")
        item.path.rename(hidden)
        shutil.rmtree(hidden)
    return sum(item.bytes for item in items)
