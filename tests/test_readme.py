"""The README is true: its tree exists, its commands parse, its variables are the ones that the code reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from flows.cli import app
from llm.data.config import CleanConfig, CollectConfig
from llm.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CODE = [line.strip() for line in README.splitlines() if line.startswith("    ")]
COMMANDS = [re.split(r"#|>>", line)[0].strip() for line in CODE if line.startswith("trainyard ")] + re.findall(
    r"`(trainyard [^`]+)`", README
)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "trainyard run"])
def test_commands_parse(command: str) -> None:
    function, bound, _ = app.parse_args(shlex.split(command)[1:], print_error=False, exit_on_error=False)
    assert callable(function)
    assert bound is not None


def test_a_file_of_keys_is_written_before_it_is_used() -> None:
    written = re.search(r"^    trainyard key \w+ .*>> (\w+); chmod 600 (\w+) ", README, re.MULTILINE)
    assert written
    assert f"--keys {written[1]}\n" in README[written.end() :]
    assert written[1] == written[2]


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 10


def test_every_place_in_the_tree_exists_and_every_folder_is_in_it() -> None:
    named = re.findall(r"^\| `([^`]+/?)` \|", README, re.MULTILINE)
    places = [place for place in named if "/" in place]
    assert [place for place in places if not (ROOT / place).exists()] == []
    rooms = {f"llm/{path.name}/" for path in (ROOT / "llm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(places)


def test_paths_in_the_text_exist() -> None:
    for path in re.findall(r"`((?:flows|tasks|llm|deployments|infra|tests)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+) +#", README)) <= targets


def test_the_example_of_sources_is_valid() -> None:
    lines = README[README.index("    collect:") : README.index("then `trainyard run")]
    example = yaml.safe_load(lines.replace("40-digit-commit", '"' + "a" * 40 + '"'))
    assert len(CollectConfig.model_validate(example["collect"]).sources) == 5
    CleanConfig.model_validate(example["clean"])
    TrainConfig.model_validate({"steps": 200, "global_batch_size": 8, "micro_batch_size": 8} | example["train"])


def test_variables_are_those_that_the_code_reads() -> None:
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    source = "\n".join(path.read_text() for layer in ("flows", "llm", "tasks") for path in (ROOT / layer).rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", source))
    assert named == {"TRAINYARD_HOME", "PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"}
    assert named <= read
