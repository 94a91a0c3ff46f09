"""What is recommended, when there is a law, and a page that needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llm.errors import DivergenceError
from llm.sweep.charts import Axis, Marks, scatter
from llm.sweep.config import SweepConfig
from llm.sweep.page import write_page
from llm.sweep.result import result
from llm.sweep.trial import Outcome, validations
from llm.train.scaling import Law

LAW = Law(E=1.5, A=40.0, B=60.0, alpha=0.3, beta=0.28)


def outcomes(widths: tuple[int, ...], budgets: tuple[int, ...]) -> list[Outcome]:
    """Finished trials of a planted law over every width and number of steps."""
    found = []
    for number, (width, steps) in enumerate((width, steps) for width in widths for steps in budgets):
        parameters, tokens = 50 * width * width, 1000 * steps
        loss = LAW.loss(parameters, tokens)
        curve = ((steps // 2, loss + 0.5), (steps, loss))
        found.append(Outcome(number, {"model.width": width, "train.steps": steps}, f"{number}", "finished", curve, "", parameters, tokens))
    return found


def config(**settings: Any) -> SweepConfig:
    settings = settings or {"model.width": {"values": [64]}, "train.steps": {"values": [100]}}
    return SweepConfig(name="sizes", recipe="tiny", search="grid", settings=settings)


def test_the_best_finished_trial_is_recommended_whatever_the_others_promised() -> None:
    finished = outcomes((64, 128), (100, 200))
    stopped = Outcome(4, finished[0].settings, "4", "stopped", ((50, 0.1),))
    failed = Outcome(5, finished[0].settings, "5", "failed", ((50, 0.1),), "DivergenceError: training diverged at step 60")
    assert result(config(), [*finished, stopped, failed]).best is finished[3]


def test_a_validating_step_that_was_skipped_has_no_loss_of_its_own(tmp_path: Path) -> None:
    records = tmp_path / "metrics.jsonl"
    records.write_text('{"step": 2, "loss": 3.0, "validation_loss": 3.5}\n{"step": 4, "skipped": 1, "validation_loss": 3.25}\n')
    assert validations(records, "loss") == ((2, 3.0),)
    assert validations(records, "validation_loss") == ((2, 3.5), (4, 3.25))


def test_without_a_finished_trial_the_first_error_is_told() -> None:
    failed = Outcome(0, {}, "0", "failed", (), "DivergenceError: training diverged at step 3")
    with pytest.raises(DivergenceError, match="no trial of the sweep finished: DivergenceError: training diverged at step 3"):
        result(config(), [failed])


def test_sizes_and_budgets_make_a_law() -> None:
    found = result(config(), outcomes((64, 128, 256), (100, 200, 400)))
    assert found.law is not None
    assert found.law.law.loss(50 * 512**2, 800_000) == pytest.approx(LAW.loss(50 * 512**2, 800_000), rel=0.02)


def test_two_of_each_are_not_enough_and_one_is_no_question() -> None:
    two, one = result(config(), outcomes((64, 128), (100, 200))), result(config(), outcomes((64,), (100, 200)))
    assert two.law is None
    assert "3 model sizes" in two.law_missing
    assert (one.law, one.law_missing) == (None, "")


def test_the_page_has_a_chart_per_setting_and_loads_nothing(tmp_path: Path) -> None:
    found = outcomes((64, 128, 256), (100, 200, 400))
    odd = Outcome(9, {"model.width": 64, "train.steps": 100}, "9", "failed", (), "DivergenceError: <b>not a tag</b>")
    write_page(result(config(), [*found, odd]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4  # two settings, the curves, the law
    assert "Next size: 10 times the compute" in page
    assert "&lt;b&gt;not a tag&lt;/b&gt;" in page
    assert re.search(r"(src|href)=|url\(|@import", page) is None


def test_a_chart_places_values_by_their_logarithm() -> None:
    chart = str(scatter([Marks([(0.001, 1.0), (0.01, 2.0), (0.1, 3.0)], "trial")], Axis(log=True), title="t"))
    left, middle, right = (float(x) for x in re.findall(r'cx="([\d.]+)"', chart))
    assert middle == pytest.approx((left + right) / 2)


def test_a_growing_file_of_two_attempts_gives_each_validation_once(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 3.0}',
        '{"step": 2, "loss": 2.5, "validation_loss": 2.6}',
        '{"step": 2, "loss": 2.5, "validation_loss": 2.6}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "valid')
    assert validations(tmp_path / "metrics.jsonl", "validation_loss") == ((2, 2.6),)
    assert validations(tmp_path / "none.jsonl", "validation_loss") == ()
