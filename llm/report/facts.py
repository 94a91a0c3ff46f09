"""What the page says, as plain values: one function per section, None or empty where a run has no such part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.report.charts import Line, line_chart
from llm.report.lineage import Node
from llm.report.remarks import remarks

NAMES = {"base": "Base model", "tuned": "Tuned model"}
TRAININGS = {"base": "pretrain", "tuned": "finetune"}
REMARKS = 20  # of a training that the page has room for


@dataclass(frozen=True)
class Stage:
    """One stage of the run and its artifact. Files that retention has taken away read as empty."""

    name: str  # "base.pretrain"
    entry: Mapping[str, Any]  # its line in summary.json

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return dict(self.read("manifest.json", {}))

    def read(self, file: str, missing: Any) -> Any:
        path = Path(self.entry["path"]) / file
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else missing

    def read_lines(self, file: str) -> list[dict[str, Any]]:
        path = Path(self.entry["path"]) / file
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def stages_of(run: Mapping[str, Any]) -> dict[str, Stage]:
    """Every stage of the run by name, in the order in which they ran."""
    stages = run.get("stages", {})
    order = [group for group in ("data", "base", "tuned") if group in stages]
    return {f"{group}.{name}": Stage(f"{group}.{name}", entry) for group in order for name, entry in stages[group].items()}


def tiles(run: Mapping[str, Any], stages: Mapping[str, Stage]) -> list[dict[str, str]]:
    """The key figures: value, what it is compared with, and whether that is good."""
    found = []
    baseline = run.get("baseline", {}).get("kneser_ney_bits_per_byte")
    if base := run.get("metrics", {}).get("base"):
        bits = base["bits_per_byte"]
        found.append(compared("Base model, bits per byte", f"{bits:.3f}", bits, baseline, "the bigram baseline"))
    tuned = run.get("metrics", {}).get("tuned", {})
    if "answer_loss" in tuned:
        loss = tuned["answer_loss"]
        found.append(compared("Tuned model, nats per answer token", f"{loss:.3f}", loss, tuned["answer_loss_base"], "before tuning"))
        found.append(_use_of_the_question(loss, tuned["answer_loss_shuffled"]))
    if worst := max((parity["max_logit_difference"] for parity in run.get("parity", {}).values()), default=None):
        found.append({"label": "ONNX against PyTorch", "value": f"{worst:.1e}", "note": "largest logit difference"})
    computed = sum(stage.entry["state"] == "computed" for stage in stages.values())
    note = f"{computed} stages computed, {len(stages) - computed} cached"
    found.append({"label": "This run", "value": duration(run["wall_seconds"]), "note": note})
    spent = sum(stage.manifest.get("energy_kwh", 0.0) for stage in stages.values() if stage.entry["state"] == "computed")
    found.append({"label": "Energy, estimated", "value": f"{spent * 1000:.2f} Wh", "note": "of what was computed"})
    return found


def compared(label: str, value: str, figure: float, other: float | None, name: str) -> dict[str, str]:
    """A tile for a figure that should be lower than another."""
    if not other:
        return {"label": label, "value": value, "note": ""}
    change = figure / other - 1
    words = f"{abs(change):.1%} {'lower' if change < 0 else 'higher'} than {name}"
    return {"label": label, "value": value, "note": words, "tone": "good" if change < 0 else "bad"}


def _use_of_the_question(loss: float, shuffled: float) -> dict[str, str]:
    """A tile that tells a model that answers from one that only writes what answers look like."""
    gain = 1 - loss / shuffled
    note = "lower answer loss than with questions shuffled"
    return {"label": "Use of the question", "value": f"{gain:.1%}", "note": note, "tone": "good" if gain > 0 else "bad"}


def curves(stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """Loss and learning rate of each training."""
    found = []
    for group, name in TRAININGS.items():
        stage = stages.get(f"{group}.{name}")
        if stage and (history := stage.read_lines("history.jsonl")):
            rollbacks = stage.read("log/cost.json", {}).get("rollbacks", 0)
            found.append({"group": group, "name": name, "rollbacks": rollbacks, **_figures(name, history)})
    return found


def _figures(name: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The two charts of one training, its last values, and what was remarkable; charts leave out steps that were not applied."""
    remarkable = [remark for row in history for remark in remarks(row)]
    history = [row for row in history if "reason" not in row]
    points = {key: [(row["step"], row[key]) for row in history if key in row] for key in ("loss", "validation_loss", "learning_rate")}
    lines = [Line(points["loss"], "raw"), Line(points["validation_loss"], "main")]
    rate = [Line(points["learning_rate"], "main")]
    return {
        "steps": history[-1]["step"],
        "remarks": remarkable[:REMARKS],
        "more_remarks": len(remarkable[REMARKS:]),
        "training": points["loss"][-1][1],
        "validation": points["validation_loss"][-1][1] if points["validation_loss"] else None,
        "loss": line_chart([line for line in lines if line.points], title=f"Loss of {name} by step"),
        "rate": line_chart(rate, title=f"Learning rate of {name} by step", height=92, ticks=2, from_zero=True),
    }


def funnel(stages: Mapping[str, Stage]) -> dict[str, Any] | None:
    """Documents from the source to the splits, every loss with its reason, and the tokens that came out."""
    books = {name: stages[f"data.{name}"].read("books.json", None) for name in ("collect", "clean", "dedup") if f"data.{name}" in stages}
    books = {name: book for name, book in books.items() if book}
    if not books:
        return None
    first = next(iter(books.values()))["read"]
    steps = [{"name": "read", "documents": first, "share": 1.0}]
    steps += [{"name": name, "documents": book["kept"], "share": book["kept"] / max(first, 1)} for name, book in books.items()]
    tokenized, audit = stages.get("data.tokenize"), stages.get("data.audit")
    page = Path(audit.entry["path"]) / "audit.html" if audit else None
    return {
        "steps": steps,
        "reasons": _reasons(books),
        "rows": tokenized.read("rows.json", None) if tokenized else None,
        "page": str(page) if page and page.is_file() else None,
    }


def _reasons(books: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Why documents were left out, most frequent first within each stage."""
    return [
        {"stage": stage, "fate": fate, "reason": reason, "documents": count, "share": count / max(book["read"], 1)}
        for stage, book in books.items()
        for fate in ("dropped", "quarantined")
        for reason, count in sorted(book.get(fate, {}).items(), key=lambda item: -item[1])
    ]


def scores(run: Mapping[str, Any], stages: Mapping[str, Stage]) -> dict[str, Any] | None:
    """Bits per byte of the baseline and of each model, overall and per domain, with bar lengths of one scale."""
    read = {group: stages[f"{group}.evaluate"].read("scores.json", None) for group in NAMES if f"{group}.evaluate" in stages}
    read = {group: found for group, found in read.items() if found}
    if not read:
        return None
    first = next(iter(read.values()))
    sources = {"baseline": first["baseline"]["kneser_ney"], **read}
    domains = ["all domains", *first["by_domain"]] if len(first["by_domain"]) > 1 else ["all domains"]
    rows = [_domain(domain, first, sources) for domain in domains]
    longest = max(bar["bits_per_byte"] for row in rows for bar in row["bars"])
    return {"rows": rows, "longest": longest, "answers": _answers(read.get("tuned", {})), "models": list(read.items())}


def _domain(domain: str, first: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    def part(scored: Mapping[str, Any]) -> Any:
        return scored if domain == "all domains" else scored["by_domain"][domain]

    bars = [{"group": group, "bits_per_byte": part(scored)["bits_per_byte"]} for group, scored in sources.items()]
    return {"name": domain, "tokens": part(first)["tokens"], "bytes": part(first)["bytes"], "bars": bars}


def _answers(tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three answer losses, with the bar lengths and the change to the tuned model's own."""
    if "answer_loss" not in tuned:
        return []
    names = {"answer_loss_base": "before tuning", "answer_loss_shuffled": "tuned, questions shuffled", "answer_loss": "tuned"}
    longest = max(tuned[key] for key in names)
    return [
        {"name": name, "loss": tuned[key], "share": tuned[key] / longest, "below": 1 - tuned["answer_loss"] / tuned[key], "key": key}
        for key, name in names.items()
    ]


def samples(stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """What each model wrote after the fixed prompts."""
    evaluated = {group: stages[f"{group}.evaluate"] for group in NAMES if f"{group}.evaluate" in stages}
    read = {group: stage.read("samples.json", []) for group, stage in evaluated.items()}
    return [{"group": group, "name": NAMES[group], "samples": found} for group, found in read.items() if found]


def releases(run: Mapping[str, Any], stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """Parity, registry decision, export folders and graphs of each model."""
    parity, registry = run.get("parity", {}), run.get("registry", {})
    return [
        {
            "group": group,
            "name": NAMES[group],
            "parity": parity.get(group),
            "decision": registry.get(group),
            "exports": run.get("exports", {}).get(group, {}),
            "graphs": graphs(stages[f"{group}.export"]) if f"{group}.export" in stages else [],
        }
        for group in NAMES
        if group in parity or group in registry
    ]


def graphs(exported: Stage) -> list[dict[str, Any]]:
    """The float32 graphs and their variants: bytes, tokens per second, and what each has lost; none if there is no variant."""
    speeds = exported.read("log/speed.json", {}).get("tokens_per_second", {})
    variants = exported.read("parity.json", {}).get("variants", {})
    if not variants:
        return []
    kind, first = next(iter(variants.items()))
    names = first["file"].replace(f"_{kind}.onnx", ".onnx")
    files = {f"onnx/{name}{end}" for name in names.split(", ") for end in ("", "_data")}
    whole = {"file": names, "bytes": sum(facts["bytes"] for name, facts in exported.manifest.get("files", {}).items() if name in files)}
    return [{"name": name, "speed": speeds.get(name), **facts} for name, facts in {"fp32": whole, **variants}.items()]


def nodes(stages: Mapping[str, Stage]) -> list[Node]:
    """The stages as a graph, joined by the parents in their manifests."""
    by_key = {(name.partition(".")[2], stage.entry["key"]): name for name, stage in stages.items()}
    found = []
    for name, stage in stages.items():
        parents = [by_key.get((parent.get("stage"), parent["key"])) for parent in stage.manifest.get("parents", {}).values()]
        found.append(Node(name, stage.entry["key"], stage.entry["state"], tuple(dict.fromkeys(parent for parent in parents if parent))))
    return found


def costs(stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """What each artifact took when it was computed: seconds, processor seconds and energy, and its share of the longest."""
    longest = max((stage.manifest.get("wall_seconds", 0.0) for stage in stages.values()), default=0.0) or 1.0
    return [
        {
            "name": name,
            "group": name.partition(".")[0],
            "state": stage.entry["state"],
            "share": stage.manifest.get("wall_seconds", 0.0) / longest,
            **{key: stage.manifest.get(key) for key in ("wall_seconds", "cpu_seconds", "energy_kwh", "key", "digest", "git_commit")},
        }
        for name, stage in stages.items()
    ]


def environment(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Versions that the artifacts were made with; several where a cached one is older."""
    found: dict[str, list[str]] = {}
    for stage in stages.values():
        facts = {**stage.manifest.get("versions", {}), "code": stage.manifest.get("git_commit", "")}
        for name, version in facts.items():
            if version and str(version) not in found.setdefault(name, []):
                found[name].append(str(version))
    return {name: ", ".join(versions) for name, versions in found.items() if versions}


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(3.21), duration(254), duration(7_500)
        ('3.2 s', '4 min 14 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def quantity(number: float) -> str:
    """A count with at most four characters of digits.

    Example:
        >>> quantity(812), quantity(48_300), quantity(3_141_592)
        ('812', '48.3 k', '3.14 M')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
