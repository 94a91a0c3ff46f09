"""The process: opens the port, serves, and ends without dropping an answer."""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys
import time
from collections import Counter
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from llm.errors import CapacityError, RecipeError
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.endpoint.connection import Connection
from llm.serve.endpoint.gate import LOOPBACK
from llm.serve.endpoint.keys import read_keys
from llm.serve.endpoint.service import Service
from llm.serve.models.catalogue import Catalogue
from llm.serve.models.spec import ModelSpec
from llm.serve.observe import log

SPARE_FILES = 256  # descriptors besides connections
SWITCH_SECONDS = 0.0005  # Python's 5 ms let the engine's thread hold up every turn of the event loop


def serve(specs: list[ModelSpec], settings: Settings | None = None) -> None:
    """Serve models until interrupted.

    Raises: ArtifactError if a model or the keys can't be read; CapacityError if the port is taken; RecipeError for an address
    that others reach while there are no keys.
    """
    settings = settings or Settings()
    check_exposure(settings)
    if settings.keys:
        read_keys(settings.keys)  # before a large model is loaded
    check_port(settings)
    allow_files(settings.limits.connections + SPARE_FILES)
    prepare_process()
    catalogue = Catalogue.open(specs, settings.models)
    try:
        app = create_app(catalogue, settings)
        config = server_config(app, settings.limits, host=settings.host, port=settings.port)
        Server(config, app.state.service).run()
    finally:
        catalogue.close()


def prepare_process() -> None:
    """Have this process log in JSON lines, its threads take turns often, and libraries be no garbage.

    A full collection would look through all that they have loaded, and hold up every thread for 0.1 s.
    """
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    log.configure()


def check_exposure(settings: Settings) -> None:
    """Raises: RecipeError for an address beyond loopback without keys."""
    if settings.host not in LOOPBACK and settings.keys is None:
        remedy = "make a key (trainyard key NAME >> keys; chmod 600 keys) and add --keys keys"
        raise RecipeError("anybody could use this server", value=f"--host {settings.host} without --keys", remedy=remedy)


def check_port(settings: Settings) -> None:
    """Learn that the port is taken before a large model is loaded, and in our own words."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            value = f"{settings.host}:{settings.port} ({error.strerror})"
            raise CapacityError("the port can't be opened", value=value, remedy="choose another with --port") from error


def allow_files(wanted: int) -> None:
    """Let the process hold as many descriptors as it may have connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))


def server_config(app: Any, limits: LimitsConfig, **listen: Any) -> uvicorn.Config:
    """uvicorn as this endpoint needs it: own connections, no websockets, no trust in forwarded addresses."""
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, limits=limits, clients=Counter())),  # which uvicorn calls as it would a class
        ws="none",
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,
        **listen,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM first refuses requests and lets the running ones finish."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self._drained_at = service, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        traffic = self.service.traffic
        if traffic.draining:
            super().handle_exit(sig, frame)
        else:
            traffic.draining = True
            self._drained_at = time.monotonic() + self.service.settings.limits.drain_seconds
            if sig == signal.SIGINT:
                self._captured_signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        traffic = self.service.traffic
        if traffic.draining and (traffic.open == 0 or time.monotonic() > self._drained_at):
            self.should_exit = True
        return await super().on_tick(counter)
