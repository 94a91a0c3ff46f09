"""The data card: what a stranger should know of the corpus, in the form that data set hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")


def write_card(found: Mapping[str, Any], path: Path) -> None:
    """Markdown after the metadata that hubs index. It names no data files: none lie beside it, and hubs know splits by their names.

    Source: https://huggingface.co/docs/hub/datasets-cards; the questions are those of Gebru et al., Datasheets for datasets,
    https://arxiv.org/abs/1803.09010, as far as figures answer them.
    """
    languages = [name for name in found["sizes"]["language"] if len(name) == 2]
    metadata = {
        "pretty_name": found["name"],
        "license": found["license"],
        "language": sorted(languages) or ["und"],
        "task_categories": ["text-generation"],
        "size_categories": [NAMES[sum(found["count"]["documents"] >= size for size in SIZES)]],
    }
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    path.write_text(f"---\n{header}---\n\n" + "\n\n".join(_sections(found)) + "\n", encoding="utf-8")


def _sections(found: Mapping[str, Any]) -> list[str]:
    count, books = found["count"], found["books"]
    fates = [f"| {stage} | {book['read']:,} | {book['kept']:,} | {_reasons(book)} |" for stage, book in books.items()]
    splits = [f"| {name} | {split['documents']:,} | {split['tokens']:,} |" for name, split in found["rows"]["splits"].items()]
    edits = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in sorted(books["clean"].get("edits", {}).items()))
    return [
        f"# {found['name']}",
        f"{count['documents']:,} documents, {count['bytes']:,} bytes of text.",
        "## Composition",
        *(_table(name, sizes) for name, sizes in found["sizes"].items()),
        "## Splits",
        "\n".join(["| split | documents | tokens |", "|---|---:|---:|", *splits]),
        "## Collection and cleaning",
        "\n".join(["| stage | read | kept | not kept |", "|---|---:|---:|---|", *fates]),
        f"Changed in what was kept: {edits or 'nothing'}.",
        "## Groups of people",
        "Documents that name them, and the mean sentiment (VADER, -1 to 1) of sentences about them:",
        "\n".join(["| group | documents | sentiment |", "|---|---:|---:|", *_groups(found)]),
    ]


def _table(name: str, sizes: Mapping[str, int]) -> str:
    whole = sum(sizes.values()) or 1
    largest = sorted(sizes.items(), key=lambda each: (-each[1], each[0]))[:20]
    return "\n".join(
        [f"| {name} | bytes | share |", "|---|---:|---:|", *(f"| {value} | {size:,} | {size / whole:.1%} |" for value, size in largest)]
    )


def _reasons(book: Mapping[str, Any]) -> str:
    reasons = {**book["dropped"], **book["quarantined"]}
    return (
        ", ".join(f"{reason.replace('_', ' ')} {number:,}" for reason, number in sorted(reasons.items(), key=lambda each: -each[1])) or "–"
    )


def _groups(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for group, part in found["sentiment"].items():
        mean = f"{part['sum'] / part['sentences']:+.2f}" if part["sentences"] else "–"
        lines.append(f"| {group} | {found['documents_naming'].get(group, 0):,} | {mean} |")
    return lines
