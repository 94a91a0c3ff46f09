"""The page of a run."""

from __future__ import annotations

from llm.report.page import write

__all__ = ["write"]
