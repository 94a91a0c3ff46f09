"""A recipe: one YAML file that describes a run from raw text to registry, frozen once it is loaded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from llm.artifact import sha256_of
from llm.config import Section
from llm.data.audit.config import AuditConfig
from llm.data.config import ChatConfig, CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
from llm.errors import RecipeError
from llm.evaluate.config import EvaluateConfig, PromoteConfig
from llm.export.config import ExportConfig
from llm.export.gguf_architecture import architecture_of
from llm.model.config import ModelConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.objective.lengths import longest
from llm.train.schedule import check_rows

DECODERS = ("decoder", "gpt2", "moe")
LEARNERS: Mapping[str, tuple[str, ...]] = {
    "next_token": DECODERS,
    "masked": ("encoder",),
    "spans": ("encoder_decoder", *DECODERS),
    "replaced": ("electra",),
    "distillation": DECODERS,
}
RECIPES = Path(__file__).parent.parent / "deployments" / "recipes"


class FinetuneConfig(Section):
    """The `finetune` section: which conversations, and how the base model learns from them."""

    chat: ChatConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _starts_from_the_base(self) -> FinetuneConfig:
        if self.train.initial:
            raise ValueError("fine-tuning starts from the base model; set train.initial, not finetune.train.initial")
        return self


class Recipe(Section):
    """Everything that decides a run. Unknown keys are refused; nothing reads configuration from elsewhere."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = Field(description="prefix of the registered models")
    seed: int = Field(default=0, ge=0)
    collect: CollectConfig
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
    tokenize: TokenizeConfig
    audit: AuditConfig = AuditConfig()
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    finetune: FinetuneConfig
    export: ExportConfig = ExportConfig()
    promote: PromoteConfig = PromoteConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.tokenize.row_tokens > self.model.max_positions:
            raise ValueError(
                f"rows of {self.tokenize.row_tokens} tokens exceed the model's {self.model.max_positions} positions; "
                "set tokenize.row_tokens lower or model.max_positions higher"
            )
        for section, train in (("train", self.train), ("finetune.train", self.finetune.train)):
            if section == "train" or self.model.architecture in DECODERS:
                _check_objective(self.model, train, section, self.tokenize)
            check_rows(train, self.cluster.layout.readers(self.cluster.workers), section)
        if self.finetune.train.mixture:
            raise ValueError("conversations have no domains to mix; unset finetune.train.mixture")
        _check_export(self.model, self.export)
        return self

    @property
    def fingerprint(self) -> str:
        """Short sha256 of the resolved recipe."""
        return sha256_of(self.model_dump(mode="json"))[:12]

    def as_yaml(self) -> str:
        """The resolved recipe, every default spelled out; loading it gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _check_objective(model: ModelConfig, train: TrainConfig, section: str, tokenize: TokenizeConfig) -> None:
    """Raises: ValueError if the architecture can't learn by the objective, or not from such rows."""
    architecture, objective = model.architecture, train.objective
    kinds = [part.objective.kind for part in objective.parts] if objective.kind == "mixture" else [objective.kind]
    for kind in kinds:
        if architecture not in LEARNERS[kind]:
            fitting = ", ".join(name for name, learners in LEARNERS.items() if architecture in learners)
            raise ValueError(f"{architecture} can't learn by {kind}; set {section}.objective.kind to one of {fitting}")
    if objective.kind == "masked" and model.architecture == "encoder" and model.next_sentence != objective.next_sentence:
        raise ValueError(f"model.next_sentence is {model.next_sentence}; set {section}.objective.next_sentence to the same")
    if objective.kind == "masked" and objective.next_sentence and model.architecture == "encoder" and model.num_segments < 2:
        raise ValueError("next_sentence tells two segments apart; set model.num_segments to 2")
    if objective.kind in ("masked", "replaced") and (objective.mask_id or 0) >= tokenize.vocab_size:
        raise ValueError(
            f"mask_id {objective.mask_id} is outside the vocabulary; set {section}.objective.mask_id below {tokenize.vocab_size}"
        )
    if architecture in DECODERS and (needed := longest(objective, tokenize.row_tokens)) > model.max_positions:
        raise ValueError(f"rows with spans take {needed} of {model.max_positions} positions; set model.max_positions to {needed}")
    if train.document_mask and "spans" in kinds:
        raise ValueError(f"spans are read across the documents of a row; set {section}.document_mask to false")
    if section == "train" and tokenize.packing != "concatenate" and "spans" in kinds:
        raise ValueError("spans would be missing from what fills rows up; set tokenize.packing to concatenate")


def _check_export(model: ModelConfig, export: ExportConfig) -> None:
    """Raises: ValueError if something is to be written that can't be of this architecture."""
    if export.gguf:
        try:
            architecture_of(model)
        except RecipeError as error:
            raise ValueError(str(error)) from error


def load(recipe: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of this name or file, with flat overrides such as {"train.steps": 500} applied.

    Raises: RecipeError in one line: the setting, its value, the file's line, and the nearest valid key.
    """
    path = find(recipe)
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError("recipe is not valid YAML", value=" ".join(str(error).split()), remedy=f"correct {path.name}") from error
    if not isinstance(values, dict):
        raise RecipeError("recipe is empty or not a mapping", value=path.name, remedy="start from deployments/recipes/tiny.yaml")
    for setting, value in (overrides or {}).items():
        override(values, setting, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, values, text, path, overrides or {}) from None


def find(recipe: str) -> Path:
    """The file of a recipe given by path or by the name of one that ships."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise RecipeError("no such recipe file", value=recipe, remedy="give a path to a .yaml file")
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    if recipe in shipped:
        return shipped[recipe]
    raise RecipeError(
        "no such recipe", value=recipe, remedy=did_you_mean(recipe, list(shipped)) + f"have: {', '.join(shipped)}, or a .yaml file"
    )


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=500` as ("train.steps", 500); the value is YAML.

    Example:
        >>> parse_override("model.tied_embeddings=false")
        ('model.tied_embeddings', False)
    """
    setting, equals, value = text.partition("=")
    if not equals or not setting:
        raise RecipeError("override is not of the form key=value", value=text, remedy="write for example --set train.steps=500")
    try:
        return setting, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError("override's value is not valid YAML", value=text, remedy="quote it") from error


def override(values: dict[str, Any], setting: str, value: Any) -> None:
    """Set a dotted key; list items are named by their index."""
    *parents, last = setting.split(".")
    here: Any = values
    for part in parents:
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict):
            here = here.setdefault(part, {})
        else:
            raise RecipeError("override names no setting", value=setting, remedy=f"`{part}` is not inside a section")
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError("override names no setting", value=setting, remedy=f"`{last}` is not inside a section")


def _explained(error: ValidationError, values: Any, text: str, path: Path, overrides: Mapping[str, Any]) -> RecipeError:
    """The first validation error as one line a person can act on."""
    first = error.errors()[0]
    location, _ = schema_at(first["loc"])
    setting = ".".join(str(part) for part in location)
    touched = [name for name in overrides if not setting or _inside(name, setting) or _inside(setting, name)]
    where = f"--set {' '.join(touched)}" if touched else f"{path.name} line {line_of(text, location)}"
    if first["type"] == "extra_forbidden":
        near = did_you_mean(str(location[-1]), _siblings(first["loc"]))
        return RecipeError(f"unknown key in {where}", value=setting, remedy=near + "remove or rename it")
    if first["type"] == "missing":
        return RecipeError(f"missing key in {where}", value=setting, remedy=f"set {setting}")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in ("value_error", "unknown_architecture"):
        return RecipeError(f"{message} ({where})")
    given = json.dumps(first["input"], default=str, ensure_ascii=False)
    return RecipeError(f"wrong value in {where}", value=f"{setting} = {given[:60]}", remedy=message[:1].lower() + message[1:])


def _inside(setting: str, section: str) -> bool:
    return f"{setting}.".startswith(f"{section}.")


def line_of(text: str, location: list[str | int]) -> int:
    """The line of the file on which a setting, or the innermost section around it, stands."""
    node, line = yaml.compose(text), 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _siblings(location: tuple[str | int, ...]) -> list[str]:
    """Valid keys beside an unknown one; every section's when the walk ends early."""
    _, options = schema_at(location[:-1])
    return sorted({name for option in options for name in option.get("properties", {})})


def schema_at(location: tuple[str | int, ...]) -> tuple[list[str | int], list[dict[str, Any]]]:
    """Where pydantic found an error, without its names for a section's alternatives, and what the recipe's JSON schema has there."""
    schema = Recipe.model_json_schema()
    options, keys = [schema], list[str | int]()
    for part in location:
        if alternative := [option for option in options if part in _tags(option)]:
            options = alternative
        else:
            keys.append(part)
            options = [_resolve(schema, below) for option in options for below in _below(option, part)]
            options = [choice for option in options for choice in _choices(schema, option)]
    return keys, options


def _tags(option: Mapping[str, Any]) -> list[str]:
    """The value that tells this alternative of a section from the others."""
    properties = option.get("properties", {})
    return [properties[name]["const"] for name in ("kind", "architecture") if "const" in properties.get(name, {})]


def _below(option: Mapping[str, Any], part: str | int) -> list[dict[str, Any]]:
    below = option.get("items") if isinstance(part, int) else option.get("properties", {}).get(part)
    return [below] if below else []


def _choices(schema: Mapping[str, Any], option: dict[str, Any]) -> list[dict[str, Any]]:
    alternatives = option.get("oneOf") or option.get("anyOf")
    return [_resolve(schema, alternative) for alternative in alternatives] if alternatives else [option]


def _resolve(schema: Mapping[str, Any], option: dict[str, Any]) -> dict[str, Any]:
    name = option.get("$ref", "").rpartition("/")[2]
    return schema["$defs"][name] if name else option


def did_you_mean(word: str, candidates: list[str]) -> str:
    """The start of a remedy: the candidate most like a word; empty if none is.

    Example:
        >>> did_you_mean("modle", ["model", "train"])
        'did you mean `model`? '
    """
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`? " if near else ""
