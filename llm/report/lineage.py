"""The lineage graph as inline SVG: artifacts in columns from left to right, an arrow from each parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 106, 48, 24, 16, 2


@dataclass(frozen=True)
class Node:
    """One artifact of the run; `parents` are names of other nodes."""

    name: str  # "base.evaluate"
    key: str
    state: str
    parents: tuple[str, ...]

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]

    @property
    def stage(self) -> str:
        return self.name.partition(".")[2]


def direct_parents(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """The parents of each node that it doesn't also descend from through another parent: the arrows worth drawing.

    Source: transitive reduction, Aho, Garey & Ullman 1972, https://doi.org/10.1137/0201008.
    """
    return {
        name: [parent for parent in node.parents if not any(parent in ancestors(nodes, other) for other in node.parents)]
        for name, node in nodes.items()
    }


def ancestors(nodes: Mapping[str, Node], name: str) -> set[str]:
    """All that a node descends from."""
    above = set(nodes[name].parents)
    return above.union(*(ancestors(nodes, parent) for parent in above))


def places(nodes: Mapping[str, Node]) -> dict[str, tuple[int, int]]:
    """Column and row of each node: columns by the longest way from a source, rows by group, evaluations outermost."""
    columns: dict[str, int] = {}
    for name in sorted(nodes, key=lambda name: len(ancestors(nodes, name))):
        columns[name] = 1 + max((columns[parent] for parent in nodes[name].parents), default=-1)
    return {name: (columns[name], _row(node)) for name, node in nodes.items()}


def _row(node: Node) -> int:
    """0 and 1 for the base model's lanes, 2 for the trunk, 3 and 4 for the tuned model's."""
    if node.group == "data" or node.stage == "pretrain":
        return 2
    outer = node.stage == "evaluate"
    return (0 if outer else 1) if node.group == "base" else (4 if outer else 3)


def graph(nodes: Sequence[Node]) -> Markup:
    """The drawing; rows that hold nothing take no room."""
    by_name = {node.name: node for node in nodes}
    where = places(by_name)
    rows = sorted({row for _, row in where.values()})
    corners = {
        name: (MARGIN + column * (BOX_WIDTH + GAP_X), MARGIN + rows.index(row) * (BOX_HEIGHT + GAP_Y))
        for name, (column, row) in where.items()
    }
    arrows = [_arrow(corners[parent], corners[name]) for name, parents in direct_parents(by_name).items() for parent in parents]
    boxes = [_box(by_name[name], *corner) for name, corner in corners.items()]
    width = max(x for x, _ in corners.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + BOX_HEIGHT + MARGIN
    frame = '<svg class="lineage" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="Lineage of the artifacts">{}</svg>'
    return Markup(frame).format(Markup("").join(arrows + boxes), w=width, h=height)


def _arrow(parent: tuple[int, int], child: tuple[int, int]) -> Markup:
    x1, y1 = parent[0] + BOX_WIDTH, parent[1] + BOX_HEIGHT // 2
    x2, y2 = child[0], child[1] + BOX_HEIGHT // 2
    bend = x2 - GAP_X // 2
    return Markup('<path class="arrow" d="M{} {} H{} C{} {} {} {} {} {}"/>').format(x1, y1, x2 - GAP_X, bend, y1, bend, y2, x2, y2)


def _box(node: Node, x: int, y: int) -> Markup:
    box = Markup(
        '<g class="node {group} {state}"><title>{name} {key}, {state}</title><rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>'
        '<text class="stage" x="{tx}" y="{y1}">{stage}</text><text class="key" x="{tx}" y="{y2}">{short}</text></g>'
    )
    places = {"x": x, "y": y, "w": BOX_WIDTH, "h": BOX_HEIGHT, "tx": x + 11, "y1": y + 20, "y2": y + 36}
    return box.format(group=node.group, state=node.state, name=node.name, key=node.key, stage=node.stage, short=node.key[:8], **places)
