"""The README's examples of clients, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
OPENAI_NODE = Path.home() / ".cache" / "trainyard-bench" / "openai-node"


def snippet(language: str, address: str) -> str:
    """The README's only example in a language, for the server and the model of these tests."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:8000" in found
    return str(found).replace("http://127.0.0.1:8000", address).replace("tiny-chat", "small")


def said(command: list[str], folder: Path, code: str = "") -> str:
    answer = subprocess.run(
        command, input=code, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_PROXY": "*"}
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_curl(address: str, tmp_path: Path) -> None:
    assert '"content":' in said(["bash", "-eu", "-o", "pipefail", "-c", snippet("sh", address)], tmp_path).replace('": "', '":"').replace(
        '":"', '":'
    )


def test_openai_python(address: str, tmp_path: Path) -> None:
    assert said([sys.executable, "-"], tmp_path, snippet("python", address)).strip()


@pytest.mark.long
def test_openai_node(address: str) -> None:
    if not (OPENAI_NODE / "node_modules" / "openai").is_dir():
        OPENAI_NODE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "openai@7"], cwd=OPENAI_NODE, check=True, timeout=300)
    assert said(["node", "--input-type=module"], OPENAI_NODE, snippet("js", address)).strip()
