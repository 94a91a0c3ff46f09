"""Which models are served, and which version of one answers a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.errors import ArtifactError, RecipeError
from llm.serve.engine.engine import Engine
from llm.serve.models.config import ModelsConfig
from llm.serve.models.folder import ModelFolder
from llm.serve.models.served import Served
from llm.serve.models.spec import ModelSpec

DEFAULT_ID = "trainyard"


class UnknownModel(ArtifactError):
    """No model of this id is served."""


class Catalogue:
    """The served models by id. Safe to use from several threads."""

    def __init__(self, served: dict[str, Served]) -> None:
        self._served, self._created = served, int(time.time())

    @classmethod
    def of(cls, engine: Engine) -> Catalogue:
        """A catalogue of one model that is loaded already."""
        return cls({engine.model_id: Served(engine, "1")})

    @classmethod
    def open(cls, specs: list[ModelSpec], config: ModelsConfig | None = None) -> Catalogue:
        """Load what the specifications name.

        Raises: ArtifactError if a folder can't be served; RecipeError if two specifications share an id.
        """
        served: dict[str, Served] = {}
        for spec in specs:
            model_id = spec.model_id or DEFAULT_ID
            if model_id in served:
                raise RecipeError("two models have one id", value=model_id, remedy="name them: first=…, second=…")
            served[model_id] = Served(Engine(Path(spec.sources[0].source.text), model_id=model_id), "1")
        return cls(served)

    @contextmanager
    def lease(self, model_id: str, *, key: str = "") -> Iterator[Served]:
        """The version that answers this request; equal keys meet the same one. It stays open for the length of the block.

        Raises: UnknownModel if no model of this id is served.
        """
        if model_id not in self._served:
            raise UnknownModel("model is not served here", value=model_id, remedy=f"ask for {', '.join(self._served)}")
        with self._served[model_id].leased() as served:
            yield served

    def entries(self) -> list[tuple[str, int, ModelFolder]]:
        """Id, time of its loading in seconds since 1970, and facts of every served model."""
        return [(model_id, self._created, served.engine.facts) for model_id, served in self._served.items()]

    def ready(self) -> bool:
        """Whether every model is loaded."""
        return bool(self._served)

    def report(self, served: Served, *, ok: bool, first_token_seconds: float | None = None) -> None:
        """Say how a request ended: `ok` is false if the model failed, not if the request was wrong."""

    def close(self) -> None:
        """Free every engine after its last request."""
        for served in self._served.values():
            served.close()
