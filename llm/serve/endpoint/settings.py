"""Settings of an endpoint from a file and the options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llm.errors import RecipeError
from llm.serve.endpoint.config import Settings


def load_settings(file: Path | None, changes: Mapping[str, Any], engine: Mapping[str, Any]) -> Settings:
    """The settings of a file, with changes, and changes of its engines, where they aren't None.

    Raises: RecipeError if the file can't be read or a setting can't be.
    """
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError("settings can't be read", value=file, remedy="name a YAML file") from error
    if not isinstance(written, dict | None):
        raise RecipeError("settings are no table", value=file, remedy="write them as NAME: VALUE")
    models = (written or {}).get("models") or {}
    merged = {**models, "engine": {**(models.get("engine") or {}), **_given(engine)}}
    try:
        return Settings.model_validate({**(written or {}), **_given(changes), "models": merged})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RecipeError(f"setting {name} can't be", value=first["msg"], remedy="change it in --config or the option") from error


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
