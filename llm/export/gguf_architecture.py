"""Which of llama.cpp's models computes one of ours, if any; without torch, so that a recipe can ask before anything starts."""

from __future__ import annotations

from llm.errors import RecipeError
from llm.model.config import DecoderConfig, Gpt2Config, ModelConfig

REMEDY = "leave export.gguf empty for this model"


def architecture_of(config: ModelConfig) -> str:
    """What llama.cpp calls the family of a model with these settings.

    Raises: RecipeError if it has none that computes the same.
    """
    if isinstance(config, Gpt2Config):
        return "gpt2"
    if not isinstance(config, DecoderConfig):
        raise RecipeError("GGUF is written of decoders and GPT-2 only", value=config.architecture, remedy=REMEDY)
    if config.qk_norm and config.attention_bias:
        raise RecipeError("llama.cpp has no model with both QK-norm and biases", remedy=REMEDY)
    architecture = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    if architecture != "llama" and config.rope_scaling and config.rope_scaling.kind == "llama3":
        raise RecipeError(f"llama.cpp's {architecture} has no stretched positions of this kind", value="llama3", remedy=REMEDY)
    return architecture
