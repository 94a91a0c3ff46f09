"""Sections of `clean`: its rules and its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm.config import Section


class RepairConfig(Section):
    """What a text was meant to be."""

    unicode: Literal["NFC", "NFKC"] = Field(default="NFC", description="NFKC also unifies what only looks different: ligatures, widths")
