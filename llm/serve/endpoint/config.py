"""How the endpoint listens, and what a client may send and take."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from llm.config import Section
from llm.serve.models.config import ModelsConfig
from llm.serve.observe.config import ObserveConfig
from llm.serve.retrieval.config import RetrievalConfig


class LimitsConfig(Section):
    """Bounds on everything that a client decides."""

    header_bytes: int = Field(default=16_384, ge=1_024, description="request line and headers together")
    body_bytes: int = Field(default=1_048_576, ge=1_024, description="body of a request")
    requests: int = Field(default=128, ge=1, description="requests in work at once; one more is told to come back")
    choices: int = Field(default=64, ge=1, description="texts that one request may have written")
    readings: int = Field(default=16, ge=1, description="requests at once that have texts embedded, or scored for an echo")
    request_seconds: float = Field(default=300, gt=0, description="time for an answer; clients may ask for less by X-Timeout-Seconds")
    header_seconds: float = Field(default=10, gt=0, description="time in which a request's headers have to arrive")
    body_seconds: float = Field(default=20, gt=0, description="time in which its body has to arrive")
    idle_seconds: int = Field(default=60, ge=1, description="time for which an idle connection is kept")
    drain_seconds: float = Field(default=30, ge=0, description="time that running requests get after SIGTERM")
    connections: int = Field(default=4_096, ge=1, description="open connections")
    connections_per_client: int = Field(default=1_024, ge=1, description="open connections from one address")
    failed_keys_per_minute: int = Field(default=20, ge=1, description="wrong keys from one address that are answered by 401, then by 429")


class Settings(Section):
    """One endpoint."""

    host: str = Field(default="127.0.0.1", description="address to listen on; beyond loopback, keys are needed")
    port: int = Field(default=8000, ge=0, le=65_535)
    host_names: tuple[str, ...] = Field(default=(), description="names besides localhost by which clients may call the server")
    keys: Path | None = Field(default=None, description="file of keys, as `trainyard key` writes them; none: every local client is let in")
    page: bool = Field(default=True, description="whether the playground is served at /")
    limits: LimitsConfig = LimitsConfig()
    models: ModelsConfig = ModelsConfig()
    observe: ObserveConfig = ObserveConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
