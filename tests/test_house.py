"""The house rules: three layers in one direction, one importer of Ray, no drawers, no secrets of this machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm.code import code_digests
from llm.stages import GRAPH, STAGES

ROOT = Path(__file__).parent.parent
LAYERS = {"llm": 0, "tasks": 1, "flows": 2}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}


def imported(path: Path) -> set[str]:
    """Top-level and dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


@pytest.mark.parametrize("path", SOURCES, ids=room)
def test_layers_point_downwards(path: Path) -> None:
    layer = LAYERS[room(path).split(".")[0]]
    above = {name for name in imported(path) if LAYERS.get(name.split(".")[0], -1) > layer}
    assert not above, f"{room(path)} imports from a layer above it: {above}"


@pytest.mark.parametrize("path", SOURCES, ids=room)
def test_prefect_stays_out_of_llm_and_ray_in_cluster(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    if room(path).startswith("llm."):
        assert "prefect" not in tops
    if not room(path).startswith("llm.cluster"):
        assert "ray" not in tops


@pytest.mark.parametrize("path", [path for path in SOURCES if room(path).startswith("llm.")], ids=room)
def test_only_tasks_choose_the_cluster(path: Path) -> None:
    if not room(path).startswith("llm.cluster"):
        assert not any(name.startswith("llm.cluster") for name in imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=room)
def test_no_drawers(path: Path) -> None:
    assert not BANNED_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=room)
def test_every_public_thing_has_an_effect_line(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{room(path)} says nothing about itself"
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_files_stay_readable() -> None:
    assert [(room(path), lines) for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400] == []


def test_the_project_is_imported_from_this_checkout() -> None:
    import flows
    import llm
    import tasks

    assert {Path(str(module.__file__)).parent.parent for module in (llm, tasks, flows)} == {ROOT}


@pytest.mark.parametrize("module", ["flows.cli", "llm.recipe", "llm.plan", "llm.stages"])
def test_a_cached_run_needs_no_torch(module: str) -> None:
    """Importing these is all that a cached run does before Prefect; torch and MLflow would double its time."""
    code = f"import {module}, sys; print([name for name in ('torch', 'mlflow', 'ray', 'prefect') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_digest_covers_what_a_stage_imports(stage: str) -> None:
    """What the stage's module really pulls in at run time is in the digest, plumbing and configs excepted."""
    from llm.code import counts

    code = f"import {', '.join(STAGES[stage].code)}, sys; print(*[name for name in sys.modules if name.startswith('llm.')])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files = {name for name in answer.stdout.split() if not (ROOT / name.replace(".", "/")).is_dir()}
    assert {name for name in files if counts(name)} <= set(code_digests(*STAGES[stage].code))


def test_the_graph_is_whole() -> None:
    for node, place in GRAPH.items():
        assert node.split(".")[1] == place.stage
        assert set(place.parents.values()) <= set(GRAPH)
        earlier = list(GRAPH)[: list(GRAPH).index(node)]
        assert set(place.parents.values()) <= set(earlier), f"{node} comes before one of its parents"


def test_ci_and_house_files_are_there() -> None:
    for name in (
        ".ci/run",
        "LICENSE",
        "CONTRIBUTING.md",
        "infra/DECISIONS.md",
        "infra/constraints.txt",
        ".rayignore",
        "deployments/prefect.yaml",
    ):
        assert (ROOT / name).is_file(), name


def test_nothing_tells_whose_machine_this_was_written_on() -> None:
    private = re.compile("/(?:" + "|".join(("root", "work", "Users")) + r")/[a-z]")
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text(errors="replace") for name in files if not name.endswith(".png")}
    assert {name: found.group() for name, text in texts.items() if (found := private.search(text))} == {}
