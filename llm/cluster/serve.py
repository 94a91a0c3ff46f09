"""The endpoint on Ray Serve: the same application in several processes, more of them while requests queue.

Ray's proxy takes the requests and hands each to the replica with the shorter queue. What differs from the endpoint
alone: connections are the proxy's, so that its clocks hold instead of ours (request_timeout_s); limits per key and
per client count in each replica; /metrics tells of the replica that answers; every replica follows the champion and
tries a new one by itself. What only one process can hold, a port for the metrics and the answers that may be rated, is
refused.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from fastapi import FastAPI

from llm.artifact import Store
from llm.cluster.connect import connected
from llm.config import Section
from llm.errors import CapacityError, DependencyError, RecipeError
from llm.run import home
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.server import check_exposure, check_port, prepare_process
from llm.serve.models.catalogue import Catalogue
from llm.serve.models.release import resolve
from llm.serve.models.spec import ModelSpec
from llm.train.config import ClusterConfig

os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"  # with it Ray listens on every interface, whatever the address
try:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
except ImportError as error:
    raise DependencyError("Ray Serve is not installed", value=error.name, remedy='pip install "ray[serve]"') from error

NAME = "trainyard"
GRACE_SECONDS = 10  # after the deadline that the endpoint keeps by itself


@dataclass(frozen=True)
class Replicas:
    """How many processes answer, and how much may wait for them."""

    least: int = 1
    most: int = 4
    cpus: float = 1.0  # of each; its engine computes with as many threads
    busy_requests: int = 8  # requests in work per replica at which another one is started
    queued_requests: int = 256  # waiting for any of them; one more is answered by 429
    retry_seconds: int = 1


class Replica:
    """One process with the application in it."""

    def __init__(self, specs: Sequence[ModelSpec], settings: Settings, home: Path) -> None:
        prepare_process()
        self._settings = settings
        self._catalogue = Catalogue.open(specs, settings.models, store=Store(home))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray asks for it once the models are loaded."""
        return create_app(self._catalogue, self._settings)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self._catalogue.ready():
            raise CapacityError("replica is closed")


@contextlib.contextmanager
def replicated(specs: Sequence[ModelSpec], settings: Settings, replicas: Replicas, home: Path) -> Iterator[str]:
    """The address of the application on Ray Serve, for the length of a block.

    Raises: ArtifactError, PromotionError if a model can't be found, RecipeError for an address that others reach while
    there are no keys and for settings that replicas can't share, CapacityError if the port is taken or no replica comes up.
    """
    check_exposure(settings)
    check_shared(settings, replicas)
    check_port(settings)
    for spec in specs:
        for source in spec.sources:
            resolve(source.source, Store(home))
    with connected(ClusterConfig(workers=replicas.most + 1), home):
        timeout = settings.limits.request_seconds + GRACE_SECONDS
        serve.start(
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                request_timeout_s=timeout,
                keep_alive_timeout_s=settings.limits.idle_seconds,
            )
        )
        try:
            _start(_application(specs, settings, replicas, home))
            yield f"http://{settings.host}:{settings.port}"
            _drain(settings.limits.drain_seconds)
        finally:
            serve.shutdown()


def _start(application: serve.Application) -> None:
    try:
        serve.run(application, name=NAME)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise CapacityError("no replica came up", value=str(error)[:500], remedy="see Ray's logs, or serve without --replicas") from error


def _drain(seconds: float) -> None:
    """Have what runs end, at most for so long: replicas finish their answers while the proxies stay, which a shutdown ends at once."""
    deadline, drained = time.monotonic() + seconds, False
    while not drained and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):  # Ray waits for a minute
            serve.delete(NAME)
            drained = True


def check_shared(settings: Settings, replicas: Replicas) -> None:
    """Raises: RecipeError for settings that only one process can keep."""
    if replicas.most == 1:
        return
    observe = settings.observe
    if observe.metrics_port:
        remedy = "leave it out: /metrics is served beside /v1"
        raise RecipeError("replicas can't share a port", value=f"observe.metrics_port {observe.metrics_port}", remedy=remedy)
    if observe.samples.folder:
        remedy = "leave it out, or serve without --replicas"
        value = f"observe.samples.folder {observe.samples.folder}"
        raise RecipeError("a rating may meet another replica than its answer", value=value, remedy=remedy)


def serve_replicas(specs: Sequence[ModelSpec], settings: Settings, replicas: Replicas) -> None:
    """Serve until SIGTERM or SIGINT; running requests are finished first, and new ones find no route."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with replicated(specs, settings, replicas, home()) as address:
        print(f"{address} on {replicas.least} to {replicas.most} replicas", flush=True)
        over.wait()


class Arguments(Section):
    """What a configuration of Ray Serve, such as infra/serve/rayservice.yaml, says of the application."""

    models: tuple[str, ...] = ("champion",)
    settings: Settings = Settings()
    replicas: Replicas = Replicas()


def application(arguments: Arguments) -> serve.Application:
    """The application that such a configuration names as `import_path`.

    Raises: RecipeError without keys, since which address Ray's proxy listens on is settled elsewhere, and for settings that
    replicas can't share.
    """
    check_exposure(arguments.settings.model_copy(update={"host": "0.0.0.0"}))
    check_shared(arguments.settings, arguments.replicas)
    return _application([ModelSpec.parse(text) for text in arguments.models], arguments.settings, arguments.replicas, home())


def _application(specs: Sequence[ModelSpec], settings: Settings, replicas: Replicas, home: Path) -> serve.Application:
    engine = settings.models.engine.model_copy(update={"threads": settings.models.engine.threads or max(int(replicas.cpus), 1)})
    models = settings.models.model_copy(update={"engine": engine})
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": replicas.cpus},
        max_ongoing_requests=settings.limits.requests,
        max_queued_requests=replicas.queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=replicas.retry_seconds),
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.least, max_replicas=replicas.most, target_ongoing_requests=replicas.busy_requests
        ),
        graceful_shutdown_timeout_s=settings.limits.drain_seconds,
        health_check_period_s=2,
    )
    return deployment(serve.ingress()(Replica)).bind(list(specs), settings.model_copy(update={"models": models}), home.absolute())
