"""From a source to files: which version it names just now, verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llm.artifact import Store, verified_manifest, write_json
from llm.errors import ArtifactError, PromotionError
from llm.registry import CHAMPION, Version, champion_to_serve, of_store
from llm.serve.models.spec import Source

HELD = Path("serve", "held.json")  # in the store: digests of versions that were rolled back, with the reason


@dataclass(frozen=True)
class Release:
    """One version of a model. `follows` is the registered name whose champion it is, or empty."""

    name: str
    version: str
    folder: Path
    digest: str = ""
    follows: str = ""


def resolve(source: Source, store: Store) -> Release:
    """The version that a source names, its files those that were registered.

    A champion that was rolled back here gives way to its predecessor.

    Raises: PromotionError for an unknown name, alias or version; ArtifactError for a folder that can't be served.
    """
    if source.registered is None:
        return _in_folder(Path(source.text))
    name, alias = source.registered
    if alias == CHAMPION:
        return _champion(champion_to_serve(store, name).name, store)
    if not alias.isdecimal():
        raise PromotionError("unknown alias", value=source.text, remedy=f"write {name}@{CHAMPION} or {name}@VERSION")
    found = [version for version in of_store(store).versions(name) if version.number == int(alias)]
    if not found:
        raise PromotionError("no such version is registered", value=source.text, remedy="see `trainyard status`")
    found[0].verify("bring its files back, or serve another version")
    return _registered(found[0])


def next_champion(name: str, store: Store) -> Release | None:
    """The champion of this name, its files not yet verified; None if it has none or is one that was rolled back here."""
    champion = of_store(store).champion(name)
    return _registered(champion, follows=name) if champion and champion.digest not in held(store) else None


def verify(release: Release) -> None:
    """Make sure that a release's files are those that were registered.

    Raises: ArtifactError
    """
    if release.digest and verified_manifest(release.folder)["digest"] != release.digest:
        raise ArtifactError("export is not the one that was registered", value=release.folder, remedy="run the same recipe again")


def held(store: Store) -> dict[str, str]:
    """Digests of the versions that this store's servers rolled back, with reasons."""
    try:
        found: dict[str, str] = json.loads((store.root / HELD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def hold(release: Release, reason: str, store: Store) -> None:
    """Remember that a version was rolled back: it is not tried again, not even after a restart."""
    (store.root / HELD).parent.mkdir(parents=True, exist_ok=True)
    with store.lock("serve", "held"):
        write_json(store.root / HELD, held(store) | {release.digest: f"{release.name} version {release.version}: {reason}"})


def _champion(name: str, store: Store) -> Release:
    registry = of_store(store)
    champion, reasons = registry.champion(name), held(store)
    if champion and champion.digest in reasons:
        reason, champion = reasons[champion.digest], registry.predecessor(name)
        if champion is None or champion.digest in reasons:
            remedy = f"promote another version, or delete {store.root / HELD} to try it again"
            raise PromotionError("champion was rolled back here, and so was the one before it", value=reason, remedy=remedy)
        champion.verify("promote another version")
    assert champion, "champion_to_serve found it"
    return _registered(champion, follows=name)


def _registered(version: Version, follows: str = "") -> Release:
    return Release(version.name, str(version.number), version.path, version.digest, follows)


def _in_folder(folder: Path) -> Release:
    """A folder is taken as it is; an export artifact is held to its manifest."""
    if not folder.is_dir():
        raise ArtifactError("no such folder", value=folder, remedy="write champion, NAME@champion, NAME@VERSION or a folder")
    if not (folder / "manifest.json").is_file():
        return Release("", folder.name or "folder", folder)
    digest = verified_manifest(folder)["digest"]
    return Release("", digest[:12], folder, digest)
