"""What the whole suite shares: no network, quiet libraries, and one finished life cycle on a small corpus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
for name in ("TRAINYARD_HOME", "PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

ROOT = Path(__file__).parent.parent
TRAINYARD = str(Path(sys.executable).parent / "trainyard")


@dataclass(frozen=True)
class Yard:
    """A store, a corpus and a small recipe, used through the `trainyard` command as a person would."""

    home: Path
    corpus: Path
    recipe: Path

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "TRAINYARD_HOME": str(self.home), "COLUMNS": "200", **environment}
        answer = subprocess.run(
            [TRAINYARD, *arguments], env=variables, cwd=self.corpus.parent, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and answer.returncode:
            raise AssertionError(f"trainyard {' '.join(arguments)} ended with {answer.returncode}\n{answer.stdout}\n{answer.stderr}")
        return answer

    def run(self, flow: str, *settings: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("run", flow, "--recipe", str(self.recipe), *[word for setting in settings for word in ("--set", setting)], check=check)

    @property
    def summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.home / "runs" / "latest" / "summary.json").read_text())
        return facts

    @property
    def states(self) -> dict[str, str]:
        return {f"{group}.{name}": stage["state"] for group, stages in self.summary["stages"].items() for name, stage in stages.items()}

    def elsewhere(self, home: Path) -> Yard:
        """The same corpus and recipe with another store."""
        return Yard(home, self.corpus, self.recipe)


def make_yard(folder: Path) -> Yard:
    """A corpus of 60 modules of the standard library and the mini recipe that reads it."""
    corpus, recipe = folder / "corpus", folder / "mini.yaml"
    corpus.mkdir()
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"), key=lambda path: (-path.stat().st_size, path.name))
    for path in modules[20:80]:
        shutil.copy(path, corpus / path.name)
    shutil.copy(ROOT / "tests" / "mini.yaml", recipe)
    return Yard(folder / "store", corpus, recipe)


class ByFile(LoadScopeScheduling):
    """Processes that share the suite take it file by file, and what shares one cluster or one finished life cycle at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/cluster/"):
            return "cluster"
        return "finished" if file.startswith(("tests/flows/", "tests/test_trace.py")) else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that the processes end together."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/flows/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    """A yard whose life cycle has run once, from raw text to two champions. Tests must leave it as they found it."""
    yard = make_yard(tmp_path_factory.mktemp("finished"))
    yard.run("lifecycle")
    return yard


@pytest.fixture
def copied(finished: Yard, tmp_path: Path) -> Yard:
    """An own copy of the finished yard's corpus and recipe, and a store of its own that holds the same artifacts.

    No key holds an absolute path, so the copy is as cached as the original.
    """
    yard = Yard(tmp_path / "store", tmp_path / "corpus", tmp_path / "mini.yaml")
    shutil.copytree(finished.corpus, yard.corpus)
    shutil.copytree(finished.home, yard.home, symlinks=True)
    shutil.copy(finished.recipe, yard.recipe)
    return yard
