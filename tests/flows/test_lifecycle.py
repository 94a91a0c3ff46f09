"""One command from raw text to registered models; the same command again does nothing; a change does what it must."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llm.stages import GRAPH


def rows(home: Path, query: str) -> list[tuple[Any, ...]]:
    """What Prefect's database says."""
    with closing(sqlite3.connect((home / "prefect" / "prefect.db").as_uri() + "?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def test_summary_has_every_key_that_machines_rely_on(finished: Any) -> None:
    facts = finished.summary
    assert {f"{group}.{name}" for group, stages in facts["stages"].items() for name in stages} == set(GRAPH)
    for stages in facts["stages"].values():
        for stage in stages.values():
            assert {"key", "state", "seconds", "path"} <= stage.keys()
            assert Path(stage["path"]).is_dir()
            assert stage["state"] in ("computed", "cached")
    for group in ("base", "tuned"):
        assert {"loss", "perplexity", "bits_per_byte", "by_domain"} <= facts["metrics"][group].keys()
        assert Path(facts["exports"][group]["huggingface"]).is_dir()
        assert Path(facts["exports"][group]["onnx"], "model.onnx").is_file()
        assert facts["parity"][group]["max_logit_difference"] <= 1e-3
        assert facts["parity"][group]["greedy_tokens_equal"] is True
    assert {"answer_loss", "answer_loss_base", "answer_loss_shuffled"} <= facts["metrics"]["tuned"].keys()
    assert facts["baseline"]["kneser_ney_bits_per_byte"] > 0
    assert facts["registry"]["model"] == "mini-chat"
    assert (facts["registry"]["version"], facts["registry"]["champion"]) == (1, True)
    assert (facts["recipe"], facts["state"]) == ("mini", "completed")
    assert "Traceback" not in Path(facts["report"]).read_text()


def test_prefect_saw_every_stage_and_keeps_its_artifacts(finished: Any) -> None:
    assert set(rows(finished.home, "select name from task_run")) == {(node,) for node in GRAPH}
    assert rows(finished.home, "select distinct state_type from flow_run") == [("COMPLETED",)]
    kept = dict(rows(finished.home, "select key, type from artifact where key is not null"))
    wanted = {
        "funnel": "table",
        "scores-base": "table",
        "scores-tuned": "table",
        "progress-pretrain": "progress",
        "progress-finetune": "progress",
    }
    assert wanted.items() <= kept.items()
    assert rows(finished.home, "select data from artifact where key = 'progress-pretrain'") == [(100,)]


def test_metrics_of_every_step_are_in_the_run(finished: Any) -> None:
    lines = [json.loads(line) for line in (finished.home / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["node"] == "base.pretrain" and "step" in line]
    assert steps[-1] == 40
    assert steps == sorted(steps)


def test_again_everything_is_cached_in_prefect_and_in_the_summary(copied: Any) -> None:
    copied.run("lifecycle")
    assert set(copied.states.values()) == {"cached"}
    last = rows(copied.home, "select id from flow_run order by start_time desc limit 1")[0][0]
    states = rows(copied.home, f"select name, state_name from task_run where flow_run_id = '{last}'")
    assert dict(states) == dict.fromkeys(GRAPH, "Cached")


def test_a_changed_setting_reruns_its_stage_and_what_follows(copied: Any) -> None:
    copied.run("lifecycle", "train.steps=8", "cluster.workers=1", "cluster.in_process=true")
    assert {node for node, state in copied.states.items() if state == "cached"} == {
        "data.collect",
        "data.clean",
        "data.dedup",
        "data.tokenize",
        "data.audit",
    }
    answer = copied("why").stdout
    assert "config: train.steps 40 → 8" in next(line for line in answer.splitlines() if line.startswith("base.pretrain"))
    assert "parent: trained" in next(line for line in answer.splitlines() if line.startswith("tuned.finetune"))


def test_a_new_document_reruns_what_depends_on_it_and_none_nothing(copied: Any) -> None:
    lines = [
        f"Train {number} left yard {number * 7 % 11} with {number + 3} wagons of coal, and nobody had written it down."
        for number in range(40)
    ]
    (copied.corpus / "new.txt").write_text("\n".join(lines))
    plan = copied("plan", "prepare", "--recipe", str(copied.recipe)).stdout
    assert "new.txt is new" in plan
    copied.run("prepare")
    assert set(copied.states.values()) == {"computed"}
    copied.run("prepare")
    assert set(copied.states.values()) == {"cached"}


def test_a_touched_document_changes_nothing(copied: Any) -> None:
    for path in copied.corpus.iterdir():
        path.touch()
    copied.run("prepare")
    assert set(copied.states.values()) == {"cached"}


def test_a_damaged_artifact_is_computed_again_and_nothing_below_it(copied: Any) -> None:
    cleaned = copied.home / "clean" / copied.summary["stages"]["data"]["clean"]["key"]
    shard = next(cleaned.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    copied.run("prepare")
    assert [node for node, state in copied.states.items() if state == "computed"] == ["data.clean"]
    shutil.rmtree(copied.home / "tokenize")
    copied.run("prepare")
    assert [node for node, state in copied.states.items() if state == "computed"] == ["data.tokenize"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.stpes=5"], "error: RecipeError: unknown key in --set train.stpes: train.stpes; did you mean `steps`?"),
        (["tokenize.vocab_size=60000000"], "error: RecipeError: vocabulary of 60000000 pieces is larger than the text supports"),
        (["collect.sources.0.path=/nowhere"], "/nowhere"),
        (["model.width=1000000", "model.ffn_width=1000000"], "error: CapacityError: training needs more memory than there is"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(finished: Any, tmp_path: Path, settings: list[str], message: str) -> None:
    yard = finished.elsewhere(tmp_path / "store")
    answer = yard.run("lifecycle", *settings, check=False)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert not (tmp_path / "store" / "runs").exists()
    assert not list((tmp_path / "store").glob("collect/*"))
