"""Keys: what changes them, what doesn't, and how the difference is told."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from llm.code import code_digests, normalised
from llm.errors import RecipeError
from llm.recipe import load
from llm.stages import SCORED, differences, fingerprint, nodes


def test_comments_docstrings_and_layout_are_not_code() -> None:
    plain = "def f(x):\n    return x + 1\n"
    dressed = '"""About."""\n# hello\n\ndef f(x):  # adds\n    """Add one."""\n    return x + 1\n\n'
    assert normalised(plain) == normalised(dressed)


@pytest.mark.parametrize(
    "changed", ["def f(x):\n    return x + 2\n", "def g(x):\n    return x + 1\n", "def f(x):\n    'a'; 'b'\n    return x + 1\n"]
)
def test_any_other_change_is_code(changed: str) -> None:
    assert normalised("def f(x):\n    return x + 1\n") != normalised(changed)


def test_f_strings_count_as_they_are_written() -> None:
    """Python 3.12 cuts them into several tokens, 3.11 does not: the text between is what is digested."""
    assert 'f"{x!r:>{width}} {{}}"' in normalised('y = f"{x!r:>{width}} {{}}"\n')


def test_the_closure_follows_imports_and_stops_at_plumbing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = code_digests("llm.train.loop")
    assert {"llm.train.loop", "llm.train.objective.kinds", "llm.model.decoder", "llm.data.rows"} <= set(found)
    assert not {"llm.errors", "llm.artifact", "llm.train.config", "llm.report", "llm.export.onnx", "llm.data.clean"} & set(found)


def test_a_stage_is_untouched_by_rooms_that_it_does_not_use() -> None:
    assert not any(name.startswith(("llm.train", "llm.model", "llm.export")) for name in code_digests("llm.data.clean"))


def test_differences_name_the_part() -> None:
    before = {
        "code": {"llm.train.objective": "1", "llm.train.loop": "2"},
        "config": {"train": {"steps": 300, "schedule": {"warmup_steps": 5}}, "seed": 1},
        "parents": {"tokenized": "aaa"},
        "packages": {"torch": "2.13.0"},
        "observed": {"sources": [{"documents": [{"id": "files:a.txt", "sha256": "1", "bytes": 3}]}]},
    }
    after = {
        "code": {"llm.train.objective": "9", "llm.train.loop": "2"},
        "config": {"train": {"steps": 400, "schedule": {"warmup_steps": 5}}, "seed": 1},
        "parents": {"tokenized": "bbb"},
        "packages": {"torch": "2.14.0"},
        "observed": {
            "sources": [{"documents": [{"id": "files:a.txt", "sha256": "2", "bytes": 4}, {"id": "files:b.txt", "sha256": "3", "bytes": 1}]}]
        },
    }
    assert differences(before, after) == [
        "code: llm/train/objective.py",
        "config: train.steps 300 → 400",
        "source: files:a.txt has changed",
        "source: files:b.txt is new",
        "packages: torch 2.13.0 → 2.14.0",
        "parent: tokenized",
    ]
    assert differences(before, before) == []


def test_the_digest_is_of_the_file_that_python_imports() -> None:
    module = importlib.import_module("llm.data.clean")
    assert Path(str(module.__file__)).is_relative_to(Path(__file__).parent.parent)
    assert sys.modules["llm.data.clean"] is module


def test_digests_are_read_and_nothing_is_imported() -> None:
    """A cached run computes every digest; importing torch for that would double its time."""
    code = (
        "import sys; from llm.code import code_digests; code_digests('llm.train.loop', 'llm.export.export'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


HOUSE = Path(__file__).parent.parent / "llm"


@pytest.mark.parametrize("path", sorted(HOUSE.rglob("config.py")), ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_configs_hold_only_fields_and_validators(path: Path) -> None:
    """Their code is in no digest, only their values are: what computes belongs in the module that uses it.

    `ClusterConfig` and its layout are outside: where training runs is in no key. What validators share is private.
    """
    outside = ("ClusterConfig", "LayoutConfig", "parse_model")
    body = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") not in outside]
    functions = [node for part in body for node in ast.walk(part) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    validators = ("model_validator", "field_validator")
    assert [
        ast.unparse(node)
        for node in functions
        if isinstance(node, ast.Lambda)
        or not (node.name.startswith("_") or any(ast.unparse(each).startswith(validators) for each in node.decorator_list))
    ] == []


def test_a_fingerprint_is_of_the_settings_that_lead_to_a_node() -> None:
    recipe = load("tiny").model_dump(mode="json")
    export = fingerprint(recipe, "base.export")
    assert fingerprint(recipe | {"promote": {}, "finetune": {}}, "base.export") == export
    assert fingerprint(recipe | {"seed": 7}, "base.export") != export
    assert fingerprint(recipe | {"finetune": {}}, "tuned.export") != fingerprint(recipe, "tuned.export")


@pytest.mark.parametrize("architecture", ["encoder", "electra", "encoder_decoder"])
def test_every_architecture_is_exported_and_those_that_write_are_registered(architecture: str) -> None:
    without_score = {"base.evaluate", "base.promote"}
    assert set(nodes("pretrain", "decoder")) - set(nodes("pretrain", architecture)) == without_score
    assert all(set(nodes("lifecycle", other)) == set(nodes("lifecycle", "decoder")) for other in SCORED)
    with pytest.raises(RecipeError, match=f"the flow lifecycle needs an architecture that writes text: {architecture}"):
        nodes("lifecycle", architecture)
