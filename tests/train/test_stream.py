from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.errors import RecipeError, StoppedError
from llm.train.loop import train
from llm.train.objective.next_token import NextToken
from llm.train.parallel.config import LayoutConfig
from llm.train.parallel.layout import Layout
from llm.train.parallel.world import World
from llm.train.stop import request
from llm.train.stream import Stream

from .conftest import ROW_TOKENS, JobMaker, write_rows

MIXTURE = {"stages": [{"share": 0.5, "domains": {"code": 0.75}}, {"share": 0.5, "languages": {"de": 1.0}}]}


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """60 rows: 12 of code, 8 of German, 40 of English."""
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder, masked=False)
    facts = json.loads((folder / "rows.json").read_text())
    sizes = {("code", "python"): 12, ("text", "de"): 8, ("text", "en"): 40}
    groups = [{"domain": kind[0], "language": kind[1], "rows": rows, "tokens": rows * ROW_TOKENS} for kind, rows in sizes.items()]
    (folder / "rows.json").write_text(json.dumps(facts | {"groups": {"train": groups}}))
    return folder


def stream(make_job: JobMaker, rows: Path, **changes: object) -> Stream:
    world = World(0, 1, torch.device("cpu"))
    return Stream.open(make_job(rows=rows, **changes), NextToken(), Layout.over(world, LayoutConfig()))


def test_a_mixture_decides_what_every_step_reads(make_job: JobMaker, grouped: Path) -> None:
    """12 steps of 8 rows: 36 of 48 are code, then 48 of German."""
    opened = stream(make_job, grouped, mixture=MIXTURE)
    rows = opened.indices(0, 96)
    assert (rows[:48] < 12).sum() == 36
    assert ((rows[48:] >= 12) & (rows[48:] < 20)).all()
    batches = opened.training(8, 8, 2)
    assert torch.equal(torch.cat([batch.targets_BT for batch in batches]), torch.from_numpy(opened.rows.batch(rows[8:16])[1]))


def test_without_a_mixture_groups_change_nothing(make_job: JobMaker, grouped: Path, rows: Path) -> None:
    assert np.array_equal(stream(make_job, grouped).indices(0, 200), stream(make_job, rows).indices(0, 200))


def test_a_resumed_mixture_trains_the_same_model_and_tells_what_it_read(make_job: JobMaker, grouped: Path) -> None:
    whole, resumed = (make_job(name, rows=grouped, mixture=MIXTURE) for name in ("whole", "resumed"))
    train(whole)
    resumed.work.mkdir()
    request(resumed.work, "a test")
    with pytest.raises(StoppedError, match="after step 1"):
        train(resumed)
    train(resumed)
    first, second = ((job.work / "final" / "history.jsonl").read_text() for job in (whole, resumed))
    assert first == second
    read = json.loads((whole.work / "final" / "log" / "cost.json").read_text())["mixture"]
    assert [group["rows"] for group in read] == [36, 50, 10]
    assert [group["token_share"] for group in read] == pytest.approx([36 / 96, 50 / 96, 10 / 96])


def test_rows_without_groups_are_refused_before_training(make_job: JobMaker) -> None:
    with pytest.raises(RecipeError, match="no groups to mix"):
        train(make_job(mixture={"domains": {"code": 1.0}}))
