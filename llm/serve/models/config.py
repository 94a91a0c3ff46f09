"""How served models are loaded, followed and tried."""

from __future__ import annotations

from pydantic import Field

from llm.config import Section
from llm.serve.engine.config import EngineConfig


class CanaryConfig(Section):
    """When a followed champion's next version has earned all requests, and when it has lost them (`canary.py`)."""

    share: float = Field(default=0.1, gt=0, le=1, description="share of the requests that the next version answers")
    requests: int = Field(default=50, ge=1, description="requests that it has to answer")
    seconds: float = Field(default=120, ge=0, description="seconds after which fewer are enough, so that a quiet server follows too")
    answers: int = Field(default=1, ge=1, description="requests that it has to have answered by then, unless the live version met none")
    failures: int = Field(default=3, ge=1, description="failed requests before a roll-back is thought of")
    error_margin: float = Field(default=0.02, ge=0, description="error rate above the live version's that is borne")
    latency_ratio: float = Field(
        default=1.5, ge=1, description="median first-token time that is borne, as a multiple of the live version's"
    )
    latency_slack_seconds: float = Field(default=0.05, ge=0, description="added to that: small times vary by more than a ratio")
    latency_requests: int = Field(default=10, ge=1, description="requests on both sides before times are compared")


class LoadConfig(Section):
    """What a model's folder may cost the process that loads it first (`rehearsal.py`)."""

    base_bytes: int = Field(default=3 * 2**30, ge=2**29, description="address space of that process, whatever the model's size")
    bytes_per_byte: int = Field(default=6, ge=1, description="address space per byte of the folder, on top")
    seconds: float = Field(default=300, gt=0, description="computing time of that process")


class ShadowConfig(Section):
    """What a shadow's copies of requests may take."""

    seconds: float = Field(default=30, gt=0, description="time for a copy's answer, which nobody waits for")
    waiting: int = Field(default=16, ge=1, description="copies that may wait for a slot; beyond it none are made")


class ModelsConfig(Section):
    """Which versions are served."""

    poll_seconds: float = Field(default=2.0, gt=0, description="how often the registry is asked for its champion")
    retry_seconds: float = Field(
        default=300,
        gt=0,
        description="longest pause before a version is tried again that could not be loaded for want of memory or storage; "
        "the first is poll_seconds, and each twice the one before",
    )
    engine: EngineConfig = EngineConfig()
    canary: CanaryConfig = CanaryConfig()
    load: LoadConfig = LoadConfig()
    shadow: ShadowConfig = ShadowConfig()
