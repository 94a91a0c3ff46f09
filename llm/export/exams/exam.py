"""How variants are judged: what they are asked of text, and how the trained model and a graph answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.export.parity.loaded import Arrays
from llm.export.quality import Logits, Question


@dataclass(frozen=True)
class Head:
    """One kind of answer of a model."""

    questions: Callable[[np.ndarray], list[Question]]  # of rows_NT
    reference: Logits  # the trained model's
    candidate: Callable[[Any], Logits]  # those of what `Exam.opened` gives


@dataclass(frozen=True)
class Exam:
    """What the variants of one model are put through."""

    opened: Callable[[Path, str], Any]  # of an onnx folder and a kind, "" for the float32 graphs
    samples: Callable[[Any, np.ndarray], Mapping[str, list[Arrays]]]  # the inputs of each graph, by its file, that rows_NT come to
    heads: Mapping[str, Head]  # the first is what the model is for
    speed: Callable[[Any, np.ndarray], float]  # tokens per second, written behind row_T or, by what only reads, read of it
