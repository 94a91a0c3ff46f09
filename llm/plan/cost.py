"""What a training will take: arithmetic, time, money, energy, and whether its data suffice."""

from __future__ import annotations

from dataclasses import dataclass

from llm.model import shape
from llm.plan import teachers
from llm.recipe import Recipe
from llm.train import budget, schedule
from llm.train.config import TrainConfig
from llm.train.devices import Device

# Share of the peak: torchtitan's docs/performance.md has 0.33 to 0.39 on H100s and 0.5 on A100s, for Llama 8B in bf16.
# On a CPU with AMX, products in bf16 are so fast that everything else takes most of the time.
EXPECTED_MFU = {"cuda": 0.4, "cpu": 0.35, "cpu bf16": 0.05}
RECOMPUTED = {"none": 1.0, "selective": 1.05, "full": 4 / 3}  # arithmetic with what backward computes again, over that without
TOKENS_PER_PARAMETER = 20  # https://arxiv.org/abs/2203.15556, table 3
WORTHWHILE_EPOCHS = 4  # up to which repeated data are nearly as good as fresh ones: https://arxiv.org/abs/2305.16264, section 5
BYTES_PER_TOKEN = 4  # of text, before a tokenizer exists


@dataclass(frozen=True)
class Cost:
    """A training from its first to its last step."""

    flops_per_token: float
    tokens: int
    tokens_per_second: float
    seconds: float
    usd: float
    kwh: float  # with the building's share
    kg_co2e: float
    mfu: float

    @property
    def days(self) -> float:
        """Of 24 hours."""
        return self.seconds / 86_400


@dataclass(frozen=True)
class Data:
    """Tokens that a training reads, against those that its model could use and those that there are."""

    tokens: int
    suited_tokens: int
    unique_tokens: int | None  # None: unknown before the text is read

    @property
    def epochs(self) -> float | None:
        """Times that the same text is read."""
        return self.tokens / self.unique_tokens if self.unique_tokens else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What doesn't suffice, with the setting that would change it."""
        found = []
        share = self.tokens / self.suited_tokens
        if 0 < share < 0.5:  # none at all is meant so
            found.append(f"{share:.0%} of the {TOKENS_PER_PARAMETER} tokens per parameter that suit this model; raise train.steps")
        if self.epochs and self.epochs > WORTHWHILE_EPOCHS:
            found.append(f"text is read {self.epochs:.1f} times, beyond {WORTHWHILE_EPOCHS} hardly worth it; add text or lower train.steps")
        return tuple(found)


def estimate(
    recipe: Recipe, train: TrainConfig, chip: Device, *, precision: str, cuda: bool, tokens_per_second: float | None = None
) -> Cost:
    """The cost on the recipe's workers, each a GPU, or the cores that the recipe gives it.

    `tokens_per_second` of the whole group, measured or of a layout, replaces the expected share of the chips' peak.

    Source: energy times the building's overhead times the grid's intensity, https://arxiv.org/abs/1910.09700, section 3.
    """
    cluster, row_tokens = recipe.cluster, recipe.tokenize.row_tokens
    flops = flops_per_token(recipe, train)
    peak = chip.flops(precision) * cluster.workers
    expected = (
        peak
        * EXPECTED_MFU["cuda" if cuda else "cpu" if precision == "fp32" else "cpu bf16"]
        / flops
        / RECOMPUTED[train.activation_checkpointing]
    )
    rate, tokens = tokens_per_second or expected, training_tokens(train, row_tokens)
    seconds = tokens / rate
    hours, price = seconds / 3600, cluster.price
    gpus = cluster.workers if cuda else 0
    usd = hours * budget.hourly_usd(price, gpus=gpus, cores=cluster.workers * cluster.cpus_per_worker)
    kwh = hours * chip.watts * cluster.workers / 1000 * price.pue
    return Cost(flops, tokens, rate, seconds, usd, kwh, kwh * price.kg_co2e_per_kwh, mfu=rate * flops / peak)


def flops_per_token(recipe: Recipe, train: TrainConfig) -> float:
    """Of the model, and of the teacher that it may ask."""
    row_tokens = recipe.tokenize.row_tokens
    own = shape.flops_per_token(shape.of(recipe.model, recipe.tokenize.vocab_size, train.objective), row_tokens)
    return own + teachers.flops_per_token(train, row_tokens)


def training_tokens(train: TrainConfig, row_tokens: int) -> int:
    """Tokens of all steps, a ramp's smaller batches counted as what they are."""
    return schedule.first_place(train, train.steps + 1) * row_tokens


def data(recipe: Recipe, train: TrainConfig, text_bytes: int | None) -> Data:
    """Whether the recipe's text and steps suit its model, by Chinchilla's rule; a mixture counts what a token meets."""
    from llm.model import sizes

    held = 1 - recipe.dedup.validation_share - recipe.dedup.test_share
    unique = int(text_bytes * held / BYTES_PER_TOKEN) if text_bytes else None
    suited = TOKENS_PER_PARAMETER * sizes.active_parameters(recipe.model, recipe.tokenize.vocab_size)
    return Data(training_tokens(train, recipe.tokenize.row_tokens), suited, unique)
