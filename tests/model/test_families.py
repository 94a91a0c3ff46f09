"""What every architecture promises to the training loop: names, documents, gradients, a folder and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from llm.artifact import write_json
from llm.errors import ArtifactError
from llm.model import families, weights
from llm.model.config import ARCHITECTURES, ModelConfig, parse_model
from llm.model.decoder import count_parameters

VOCAB_SIZE, T = 61, 20
LLAMA = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48, "max_positions": 32}
PLAIN = {"width": 32, "num_layers": 2, "num_heads": 4, "ffn_width": 48, "max_positions": 32}
SIZES: dict[str, dict[str, Any]] = {
    "decoder": LLAMA,
    "moe": LLAMA | {"num_experts": 4, "experts_per_token": 2, "balance": "bias"},
    "gpt2": PLAIN,
    "encoder": PLAIN | {"embedding_width": 16, "next_sentence": True},
    "encoder_decoder": PLAIN | {"tied_embeddings": True, "num_decoder_layers": 3},
    "electra": PLAIN | {"embedding_width": 16, "generator": {"width": 16, "num_layers": 1, "num_heads": 2, "ffn_width": 24}},
}
every_family = pytest.mark.parametrize("architecture", ARCHITECTURES)


def a_model(architecture: str, **changes: Any) -> Any:
    """Weights wider than at the start of training, so that differences show."""
    torch.manual_seed(0)
    model = families.build(parse_model({"architecture": architecture, **SIZES[architecture], **changes}), VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs(architecture: str, *, length: int = T, documents: list[int] | None = None, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB_SIZE, (2, length), generator=generator)
    numbers = None if documents is None else torch.tensor([documents] * 2)
    if architecture == "encoder_decoder":
        given = {"tokens_BS": tokens, "decoder_tokens_BT": tokens.flip(0)}
        return given if numbers is None else given | {"documents_BS": numbers, "decoder_documents_BT": numbers}
    return {"tokens_BT": tokens} if numbers is None else {"tokens_BT": tokens, "documents_BT": numbers}


def test_every_section_has_a_family() -> None:
    sections = [get_args(option)[0] for option in get_args(get_args(ModelConfig)[0])]
    assert {section.model_fields["architecture"].default for section in sections} == set(families.FAMILIES) == set(ARCHITECTURES)


@every_family
def test_names_that_the_loop_relies_on(architecture: str) -> None:
    model = a_model(architecture)
    assert isinstance(model.blocks, nn.ModuleList)
    assert isinstance(model.embedding, nn.Embedding)
    assert isinstance(model.head, nn.Linear)
    assert (model.config.architecture, model.vocab_size) == (architecture, VOCAB_SIZE)
    assert model.head(model.features(**inputs(architecture))).shape == (2, T, VOCAB_SIZE)


@every_family
def test_documents_in_a_row_are_documents_alone(architecture: str) -> None:
    model = a_model(architecture).eval()
    whole = model.features(**inputs(architecture, documents=[3] * 8 + [4] * 12))
    for part in (slice(0, 8), slice(8, 20)):
        alone = model.features(**{name: tensor[:, part] for name, tensor in inputs(architecture).items()})
        torch.testing.assert_close(whole[:, part], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(whole, model.features(**inputs(architecture)), atol=1e-3)


@every_family
@pytest.mark.parametrize("kept", ["selective", "full"])
def test_recomputing_changes_no_gradient(architecture: str, kept: str) -> None:
    model = a_model(architecture, dropout=0.1)

    def gradients(checkpointing: str) -> list[Tensor | None]:
        for block in model.blocks:
            block.checkpointing = checkpointing
        torch.manual_seed(0)
        model.features(**inputs(architecture)).square().sum().backward()
        found = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        return found

    for ours, theirs in zip(gradients(kept), gradients("none"), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)  # type: ignore[arg-type]


@every_family
def test_dropout_is_for_training_only(architecture: str) -> None:
    dropping, keeping, given = a_model(architecture, dropout=0.2), a_model(architecture).eval(), inputs(architecture)
    assert not torch.equal(dropping.features(**given), dropping.features(**given))
    assert torch.equal(dropping.eval().features(**given), keeping.features(**given))


@every_family
def test_every_family_learns(architecture: str) -> None:
    torch.manual_seed(0)
    model = families.build(parse_model({"architecture": architecture, **SIZES[architecture]}), VOCAB_SIZE)
    given, targets_BT = inputs(architecture), inputs(architecture, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        logits_BTV = model.head(model.features(**given))  # type: ignore[operator]
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), next(iter(targets_BT.values())).flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(VOCAB_SIZE)).item(), abs=1.0)  # an even guess, nearly
    assert losses[-1] < losses[0] / 2


@every_family
def test_a_folder_gives_the_model_back(architecture: str, tmp_path: Path) -> None:
    model = a_model(architecture).eval()
    if architecture == "moe":
        model.blocks[1].feed_forward.bias_E.normal_()
    weights.save(model, tmp_path)
    back = weights.load(tmp_path)
    assert type(back) is type(model)
    assert back.config == model.config
    assert torch.equal(back.features(**inputs(architecture)), model.features(**inputs(architecture)))
    assert back.head.weight is back.embedding.weight
    assert count_parameters(back) == count_parameters(model)
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    assert stored == count_parameters(model) + sum(buffer.numel() for buffer in model.buffers())


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    weights.save(a_model("gpt2"), tmp_path)
    other = a_model("decoder")
    write_json(tmp_path / "config.json", {"model": other.config.model_dump(mode="json"), "vocab_size": VOCAB_SIZE})
    with pytest.raises(ArtifactError, match="weights don't fit"):
        weights.load(tmp_path)


def test_encoder_sees_both_sides_and_t5_decoder_one() -> None:
    bert, t5 = a_model("encoder").eval(), a_model("encoder_decoder").eval()
    given = inputs("encoder_decoder")
    changed_BT = given["decoder_tokens_BT"].clone()
    changed_BT[:, 12] = (changed_BT[:, 12] + 1) % VOCAB_SIZE
    before, after = bert(given["decoder_tokens_BT"]), bert(changed_BT)
    assert not torch.allclose(before[:, :12], after[:, :12], atol=1e-4)
    before, after = t5(given["tokens_BS"], given["decoder_tokens_BT"]), t5(given["tokens_BS"], changed_BT)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-4)
