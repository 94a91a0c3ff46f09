"""The page from summaries and artifacts like those of a real run, and from what is left when parts are missing."""

from __future__ import annotations

import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llm.report.charts import Line, line_chart, nice_ticks, thinned
from llm.report.facts import Stage, compared, graphs
from llm.report.lineage import Node, direct_parents
from llm.report.page import write
from llm.stages import GRAPH

SECONDS = {
    "collect": 3.1,
    "clean": 12.4,
    "dedup": 8.8,
    "tokenize": 11.2,
    "pretrain": 118.6,
    "finetune": 58.2,
    "evaluate": 4.4,
    "export": 16.9,
}
VERSIONS = {
    "python": "3.11.2",
    "machine": "x86_64",
    "system": "Linux",
    "trainyard": "0.1.0",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "prefect": "3.8.8",
}
BOOKS = {
    "collect": {"read": 4212, "kept": 4199, "dropped": {}, "quarantined": {"undecodable": 9, "empty": 4}},
    "clean": {"read": 4199, "kept": 3466, "dropped": {"too_short": 611, "repeated_lines": 84, "symbol_share": 38}, "quarantined": {}},
    "dedup": {"read": 3466, "kept": 3188, "dropped": {"near_duplicate": 203, "exact_duplicate": 75}, "quarantined": {}},
}
SPLITS = {"train": {"documents": 2996, "tokens": 3_141_592, "rows": 12271}, "validation": {"documents": 90, "tokens": 95_112, "rows": 371}}
SPLITS["test"] = {"documents": 102, "tokens": 101_377, "rows": 395}


def scored(loss: float, bits: float) -> dict[str, Any]:
    def figures(factor: float, tokens: int) -> dict[str, Any]:
        scaled = loss * factor
        return {"loss": scaled, "perplexity": math.exp(scaled), "bits_per_byte": bits * factor, "tokens": tokens, "bytes": tokens * 3}

    return figures(1.0, 101_275) | {"by_domain": {"code": figures(0.86, 61_020), "docs": figures(1.21, 40_255)}}


def history(steps: int, start: float, end: float, peak: float) -> list[dict[str, float]]:
    rows = []
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-step / steps * 6) + 0.09 * math.sin(step * 12.9898) * math.cos(step * 4.1)
        rate = peak * min(step / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
        row = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 0.8, "tokens": step * 8192}
        rows.append(row | ({"validation_loss": loss + 0.06} if step % 30 == 0 else {}))
    return rows


def files(node: str) -> dict[str, Any]:
    """What a stage at this place of the graph writes, as far as the page reads it."""
    group, stage = node.split(".")
    bigram = {key: value for key, value in scored(4.14, 2.512).items() if key != "perplexity"}
    answers = {"answer_loss": 2.118, "answer_loss_base": 3.377, "answer_loss_shuffled": 2.406} if group == "tuned" else {}
    scores = {"base": scored(3.52, 2.131), "tuned": scored(3.71, 2.246)}.get(group, {})
    plain = [{"prompt": "def main(", "text": "self, name):\n    if name is None:\n        return <self>.name\n    return self._name(name)"}]
    chat = [{"prompt": "What does os.path.join do?", "text": "Return the path of the given file, joined by the separator."}]
    return {
        "collect": {"books.json": BOOKS["collect"]},
        "clean": {"books.json": BOOKS["clean"]},
        "dedup": {"books.json": BOOKS["dedup"]},
        "audit": {"audit.html": "a page"},
        "tokenize": {"rows.json": {"dtype": "uint16", "row_tokens": 256, "vocab_size": 4096, "splits": SPLITS}},
        "pretrain": {"history.jsonl": history(600, 8.32, 3.5, 0.02)},
        "finetune": {"history.jsonl": history(240, 3.6, 2.1, 0.004)},
        "evaluate": {
            "scores.json": scores | {"baseline": {"kneser_ney": bigram}} | answers,
            "samples.json": plain * 2 if group == "base" else chat * 2,
        },
        "export": {
            "parity.json": {
                "variants": {
                    "int8": {"file": "model_int8.onnx", "bytes": 1_501_558, "perplexity_increase": -0.00044, "greedy_agreement": 0.9896}
                }
            },
            "log/speed.json": {"tokens_per_second": {"fp32": 2837.4, "int8": 4626.2}},
        },
        "promote": {},
    }[stage]


def example(store: Path, nodes: list[str], *, cached: tuple[str, ...] = ()) -> dict[str, Any]:
    """Artifacts of these nodes in the store, and the summary that names them."""
    stages: dict[str, dict[str, Any]] = {}
    keys = {node: hashlib.sha256(node.encode()).hexdigest()[:20] for node in nodes}
    for node in nodes:
        group, stage = node.split(".")
        folder = store / stage / keys[node]
        folder.mkdir(parents=True)
        for name, content in files(node).items():
            text = "\n".join(json.dumps(row) for row in content) if name.endswith("jsonl") else json.dumps(content)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        seconds = SECONDS.get(stage, 1.2)
        manifest = {
            "stage": stage,
            "key": keys[node],
            "digest": hashlib.sha256(keys[node].encode()).hexdigest(),
            "parents": {
                role: {"stage": parent.split(".")[1], "key": keys[parent], "digest": "d"} for role, parent in GRAPH[node].parents.items()
            },
            "wall_seconds": seconds,
            "cpu_seconds": seconds * 1.7,
            "energy_kwh": seconds * 1.7 * 12 / 3.6e6,
            "versions": VERSIONS,
            "git_commit": "0123456789ab",
            "files": {"onnx/model.onnx": {"bytes": 5_082_654}} if stage == "export" else {},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        state = "cached" if node in cached else "computed"
        stages.setdefault(group, {})[stage] = {"key": keys[node], "state": state, "seconds": seconds, "path": str(folder)}
    return summary(store, stages)


def summary(store: Path, stages: dict[str, Any]) -> dict[str, Any]:
    run: dict[str, Any] = {"run_id": "20261120-212533-tiny-5f0c", "flow": "lifecycle", "recipe": "tiny", "fingerprint": "3f9a1c77b2d4"}
    run |= {"state": "completed", "wall_seconds": 247.3, "stages": stages, "metrics": {}, "exports": {}, "parity": {}}
    for group, name in (("base", "tiny-base"), ("tuned", "tiny-chat")):
        if "evaluate" in stages.get(group, {}):
            run["metrics"][group] = {key: value for key, value in files(f"{group}.evaluate")["scores.json"].items() if key != "baseline"}
            run["baseline"] = {"kneser_ney_bits_per_byte": 2.512}
        if "export" in stages.get(group, {}):
            run["exports"][group] = {kind: f"{store}/export/e{group}/{kind}" for kind in ("huggingface", "onnx")}
            run["parity"][group] = {"max_logit_difference": 2.4e-5, "greedy_tokens_equal": True}
        if "promote" in stages.get(group, {}):
            reason = "2.1310 bits per byte is not worse than the champion, 2.1402 + 0.0000"
            run.setdefault("registry", {})[group] = {"model": name, "version": 3, "champion": group == "base", "reason": reason}
    return run


class Tags(HTMLParser):
    """Checks that tags close in order, and collects attributes that could load something."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "action", "xlink:href") or name.startswith("on")
        ]
        self.loads += [tag] if tag in ("script", "iframe", "object", "embed", "link") else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def rendered(run: dict[str, Any], store: Path) -> str:
    write(run, store, store / "report.html")
    page = (store / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.loads == []
    assert not re.search(r"url\(|@import|https?://", page)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    return page


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_graphs_of_an_encoder_decoder_are_shown_together(tmp_path: Path) -> None:
    names = (
        "encoder_model.onnx",
        "decoder_model_merged.onnx",
        "encoder_model.onnx_data",
        "encoder_model_q4.onnx",
        "decoder_model_merged_q4.onnx",
    )
    made = {"file": "encoder_model_q4.onnx, decoder_model_merged_q4.onnx", "bytes": 7}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {f"onnx/{name}": {"bytes": 10} for name in names}}))
    (tmp_path / "parity.json").write_text(json.dumps({"variants": {"q4": made}}))
    found = graphs(Stage("base.export", {"path": str(tmp_path)}))
    whole = {"name": "fp32", "speed": None, "file": "encoder_model.onnx, decoder_model_merged.onnx", "bytes": 30}
    assert found == [whole, {"name": "q4", "speed": None, **made}]


def test_a_whole_run_shows_every_section(tmp_path: Path) -> None:
    page = rendered(example(tmp_path, list(GRAPH)), tmp_path)
    sections = ["Training", "Scores on test text", "Samples", "Data", "Export and registry", "Lineage", "Time and energy", "Environment"]
    assert headings(page) == sections
    assert f"<code>audit/{hashlib.sha256(b'data.audit').hexdigest()[:20]}/audit.html</code>" in page
    for text in ("2.131", "15.2% lower than the bigram baseline", "37.3% lower than before tuning", "12.0%", "too short"):
        assert text in page
    assert '<b class="good">champion</b>' in page
    assert '<b class="bad">not promoted</b>' in page
    assert "return &lt;self&gt;.name" in page
    assert "export/ebase/onnx" in page
    shown = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "fp32 model.onnx 5.1 2837 – – int8 model_int8.onnx 1.5 4626 -0.04% 99.0%" in shown
    assert f"{tmp_path}/export/ebase" not in page


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["data.collect"], ["Data", "Lineage", "Time and energy", "Environment"]),
        ([node for node in GRAPH if node.startswith("data.")], ["Data", "Lineage", "Time and energy", "Environment"]),
        (
            [node for node in GRAPH if node.startswith("data.")] + ["base.pretrain"],
            ["Training", "Data", "Lineage", "Time and energy", "Environment"],
        ),
        ([], []),
    ],
)
def test_a_run_that_did_less_shows_less(tmp_path: Path, nodes: list[str], expected: list[str]) -> None:
    assert headings(rendered(example(tmp_path, nodes), tmp_path)) == expected


def test_remarkable_steps_are_listed(tmp_path: Path) -> None:
    run = example(tmp_path, list(GRAPH))
    trained = Path(run["stages"]["base"]["pretrain"]["path"])
    rows: list[dict[str, Any]] = history(30, 8.0, 3.5, 0.02)
    rows[3]["alerts"] = ["loss rises"]
    rows[9:] = [{"step": row["step"], "action": "skip", "reason": "loss nan, gradient norm nan", "rows": [4]} for row in rows[9:]]
    (trained / "history.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (trained / "log").mkdir()
    (trained / "log" / "cost.json").write_text(json.dumps({"rollbacks": 2}))
    page = rendered(run, tmp_path)
    assert "<li>step 4: loss rises</li><li>step 10 was not applied: loss nan, gradient norm nan</li>" in page
    assert "<li>and 2 more in history.jsonl</li>" in page
    assert "went back to a checkpoint: 2 ×" in page


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = example(tmp_path, ["data.collect"]) | {"state": "failed", "error": "DataError: corpus is empty: <0> documents"}
    page = rendered(run, tmp_path)
    assert '<span class="badge failed">failed</span>' in page
    assert "corpus is empty: &lt;0&gt; documents" in page


def test_deleted_artifacts_leave_the_rest_readable(tmp_path: Path) -> None:
    run = example(tmp_path, list(GRAPH))
    for path in (*tmp_path.glob("*/*/*.json"), *tmp_path.glob("*/*/*.jsonl")):
        path.unlink()
    assert headings(rendered(run, tmp_path)) == ["Export and registry", "Lineage", "Time and energy"]


def test_text_from_outside_is_escaped_everywhere(tmp_path: Path) -> None:
    run = example(tmp_path, list(GRAPH))
    hostile = "<script>alert('x')</script>"
    for key in ("recipe", "run_id", "flow", "state"):
        run[key] = hostile
    run["registry"]["base"]["reason"] = hostile
    run["stages"]["data"]["collect"]["key"] = hostile
    page = rendered(run, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_cached_stages_are_told_apart(tmp_path: Path) -> None:
    page = rendered(example(tmp_path, list(GRAPH), cached=tuple(GRAPH)[:6]), tmp_path)
    assert page.count('class="node data cached"') == 5
    assert page.count('class="node base cached"') == 1
    assert "7 stages computed, 6 cached" in page


def test_only_arrows_that_say_something_are_drawn() -> None:
    nodes = {name: Node(name, "k", "computed", tuple(node.parents.values())) for name, node in GRAPH.items()}
    arrows = direct_parents(nodes)
    assert arrows["base.evaluate"] == ["base.pretrain"]
    assert sorted(arrows["tuned.promote"]) == ["tuned.evaluate", "tuned.export"]
    assert sum(map(len, arrows.values())) == 14


@pytest.mark.parametrize(("low", "high", "about"), [(3.4, 8.3, 4), (0, 0.02, 3), (0, 600, 5), (2.0, 2.0, 4), (0, 1e-7, 4), (-3, 7, 5)])
def test_ticks_are_round_and_inside(low: float, high: float, about: int) -> None:
    ticks = nice_ticks(low, high, about)
    assert 1 <= len(ticks) <= about + 1
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)


def test_a_line_goes_through_its_points() -> None:
    drawing = ElementTree.fromstring(line_chart([Line([(0, 0.0), (5, 1.0), (10, 0.0)], "main")], title="t", height=100))
    (line,) = (element for element in drawing if element.tag == "polyline")
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, pair.split(","))) for pair in line.get("points", "").split())
    assert x1 - x0 == x2 - x1 > 0
    assert y0 == y2 > y1


def test_long_series_are_averaged_and_short_ones_are_kept() -> None:
    short = [(float(step), float(step)) for step in range(100)]
    assert list(thinned(short)) == short
    long = thinned([(float(step), 1.0) for step in range(100_000)])
    assert len(long) <= 240
    assert {y for _, y in long} == {1.0}


def test_a_figure_above_what_it_should_beat_is_bad() -> None:
    assert compared("loss", "2.2", 2.2, 2.0, "before")["tone"] == "bad"
    assert compared("loss", "2.2", 2.2, 2.0, "before")["note"] == "10.0% higher than before"
    assert compared("loss", "2.2", 2.2, None, "before")["note"] == ""
