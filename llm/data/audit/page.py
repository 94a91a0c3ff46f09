"""The page of a corpus: one self-contained HTML file, in the style of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.report.template import filled

MOST_BARS = 12


def write_page(found: Mapping[str, Any], out: Path) -> None:
    """Write the page."""
    values = {
        "found": found,
        "tiles": tiles(found),
        "funnel": funnel(found["books"]),
        "reasons": reasons(found["books"]),
        "lengths": lengths(found["lengths"]),
        "dimensions": {name: bars(sizes) for name, sizes in found["sizes"].items()},
        "groups": groups(found),
    }
    out.write_text(filled(Path(__file__).parent, values), encoding="utf-8")


def tiles(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The key figures."""
    count, books = found["count"], found["books"]
    masked = sum(number for name, number in books["clean"].get("edits", {}).items() if name.startswith("masked_"))
    twins = sum(books["dedup"]["dropped"].values())
    return [
        {"label": "Documents kept", "value": f"{count['documents']:,}", "note": f"of {books['collect']['read']:,} read"},
        {
            "label": "Text",
            "value": f"{count['bytes'] / 1e6:,.1f} MB",
            "note": f"{count['characters'] / max(1, count['documents']):,.0f} characters per document",
        },
        {"label": "Tokens", "value": f"{sum(split['tokens'] for split in found['rows']['splits'].values()):,}", "note": "in all splits"},
        {
            "label": "Duplicates",
            "value": f"{twins / max(1, books['dedup']['read']):.1%}",
            "note": f"{twins:,} of {books['dedup']['read']:,} documents",
        },
        {"label": "Personal data masked", "value": f"{masked:,}", "note": f"{1e6 * masked / max(1, count['bytes']):.1f} per MB kept"},
        {"label": "Quarantined", "value": f"{sum(books['collect']['quarantined'].values()):,}", "note": "could not be read"},
    ]


def funnel(books: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many documents each stage read and kept, as shares of the first."""
    first = max(1, books["collect"]["read"])
    return [
        {"name": stage, "read": book["read"], "kept": book["kept"], "share": 100 * book["kept"] / first} for stage, book in books.items()
    ]


def reasons(books: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Why documents went, the most frequent first."""
    found = [
        {"stage": stage, "reason": reason.replace("_", " "), "documents": number}
        for stage, book in books.items()
        for fate in ("dropped", "quarantined")
        for reason, number in book[fate].items()
    ]
    return sorted(found, key=lambda each: (-each["documents"], each["reason"]))


def lengths(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Documents by length, in powers of two of characters."""
    most = max(counts.values(), default=1)
    powers = sorted(map(int, counts))
    return (
        [
            {
                "name": f"{2**power:,} – {2 ** (power + 1) - 1:,}",
                "figure": f"{counts.get(str(power), 0):,}",
                "share": 100 * counts.get(str(power), 0) / most,
            }
            for power in range(powers[0], powers[-1] + 1)
        ]
        if powers
        else []
    )


def bars(sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Shares of bytes, the largest first; what doesn't fit is one bar."""
    whole = sum(sizes.values()) or 1
    ordered = sorted(sizes.items(), key=lambda each: (-each[1], each[0]))
    shown = ordered[:MOST_BARS] if len(ordered) > MOST_BARS + 1 else ordered
    rest = whole - sum(size for _, size in shown)
    named = [*shown, *([(f"{len(ordered) - len(shown)} others", rest)] if len(shown) < len(ordered) else [])]
    return [{"name": name, "figure": f"{size / whole:.1%}", "share": 100 * size / whole} for name, size in named]


def groups(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often groups of people are named, and the mean sentiment of sentences about them, the most named first."""
    most = max([*found["documents_naming"].values(), 1])
    rows = []
    for name, part in found["sentiment"].items():
        documents = found["documents_naming"].get(name, 0)
        mean = part["sum"] / part["sentences"] if part["sentences"] else None
        row = {"name": name, "documents": documents, "mentions": found["mentions"].get(name, 0), "sentences": part["sentences"]}
        rows.append(row | {"sentiment": mean, "share": 100 * documents / most})
    return sorted(rows, key=lambda row: (-row["documents"], row["name"]))
