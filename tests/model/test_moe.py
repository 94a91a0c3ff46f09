"""Experts against one token at a time, the router's terms against transformers and the papers, balance against skew."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llm.model.config import MoeConfig
from llm.model.moe import Experts, Moe, experts_of, forget_loads, update_biases

VOCAB_SIZE = 61


def config(**changes: Any) -> MoeConfig:
    sizes: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 24, "max_positions": 64}
    return MoeConfig(**(sizes | {"num_experts": 6, "experts_per_token": 2} | changes))


def experts(**changes: Any) -> Experts:
    """Experts far enough from zero that every choice shows, with a bias that changes some choices."""
    torch.manual_seed(0)
    layer = Experts(config(**changes))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
        if layer.bias_E is not None:
            layer.bias_E.normal_(std=0.3)
    return layer


def one_at_a_time(layer: Experts, x_ND: Tensor) -> Tensor:
    """Each token to each of its experts, first choices first, for as long as there is room."""
    sizes, room, y_ND = layer.config, [layer.capacity(len(x_ND)) or math.inf] * layer.config.num_experts, torch.zeros_like(x_ND)
    logits_NE = x_ND @ layer.router.weight.T
    scores_NE = logits_NE.softmax(-1) if sizes.router == "softmax" else logits_NE.sigmoid()
    wanted_NE = scores_NE if layer.bias_E is None else scores_NE + layer.bias_E
    for choice in range(sizes.experts_per_token):
        for token, x_D in enumerate(x_ND):
            chosen = wanted_NE[token].argsort(descending=True)[: sizes.experts_per_token]
            total = scores_NE[token, chosen].sum() if sizes.normalised_shares else 1.0
            expert = int(chosen[choice])
            room[expert] -= 1
            if room[expert] >= 0:
                inner_F = F.silu(layer.gate[expert] @ x_D) * (layer.up[expert] @ x_D)
                y_ND[token] = y_ND[token] + scores_NE[token, expert] / total * (layer.down[expert] @ inner_F)
    return y_ND if layer.shared is None else y_ND + layer.shared(x_ND)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router": "sigmoid", "balance": "bias"},
        {"normalised_shares": False},
        {"router": "sigmoid", "normalised_shares": False, "num_shared_experts": 2},
        {"capacity_factor": 1.0},
        {"capacity_factor": 0.5, "balance": "bias"},
        {"experts_per_token": 1},
        {"experts_per_token": 6},
        {"num_experts": 64, "experts_per_token": 2},
    ],
)
def test_sorted_tokens_get_what_each_would_get_alone(changes: dict[str, Any]) -> None:
    layer, x_BTD = experts(**changes), torch.randn(2, 9, 32, requires_grad=True)
    ours, theirs = layer(x_BTD), one_at_a_time(layer, x_BTD.flatten(0, 1)).view(2, 9, 32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    learned = [x_BTD, *layer.parameters()]
    weights_BTD = torch.randn_like(ours)
    expected = torch.autograd.grad((theirs * weights_BTD).sum(), learned)
    torch.testing.assert_close(torch.autograd.grad((ours * weights_BTD).sum(), learned), expected, rtol=0, atol=1e-4)


def test_an_expert_takes_no_more_than_its_capacity_and_the_rest_is_counted() -> None:
    layer, x_BTD = experts(capacity_factor=0.75, num_experts=4), torch.randn(2, 40, 32)
    layer(x_BTD)
    asked_E, capacity = layer.routed.chosen_E, 30  # ⌈0.75 · 80 · 2 / 4⌉
    assert layer.capacity(80) == capacity
    assert asked_E.sum() == 160
    assert layer.routed.dropped == sum(max(0, int(asked) - capacity) for asked in asked_E) > 0
    layer.eval()(x_BTD)
    assert layer.routed.dropped == 0


def test_one_layer_balances_as_in_transformers() -> None:
    """transformers counts a token once per expert that it visits; here the shares of the assignments add up to 1."""
    layer, x_ND = experts(), torch.randn(50, 32)
    layer(x_ND)
    theirs = load_balancing_loss_func((layer.router(x_ND),), num_experts=6, top_k=2)
    assert layer.routed.balance.item() == pytest.approx(50 * theirs.item() / 2, rel=1e-5)
    assert layer.routed.router_z.item() == pytest.approx(layer.router(x_ND).logsumexp(-1).square().sum().item(), rel=1e-6)


def test_even_routing_costs_one_per_token() -> None:
    layer = experts()
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(torch.randn(50, 32))
    assert layer.routed.balance.item() == pytest.approx(50, rel=1e-5)
    assert layer.routed.entropy.item() == pytest.approx(math.log(6), rel=1e-5)
    assert layer.routed.router_z.item() == pytest.approx(50 * math.log(6) ** 2, rel=1e-5)


def test_terms_and_statistics_are_those_of_all_layers() -> None:
    torch.manual_seed(0)
    model = Moe(config(), VOCAB_SIZE)
    tokens_BT = torch.randint(0, VOCAB_SIZE, (3, 20))
    x_BTD = model.features(tokens_BT)
    terms, statistics = model.auxiliary(), model.router_statistics()
    layers = list(experts_of(model))
    assert terms["balance"].item() == pytest.approx(sum(layer.routed.balance.item() for layer in layers) / 2, rel=1e-6)
    assert set(terms) == set(model.auxiliary_weights)
    torch.testing.assert_close(statistics["shares_LE"].sum(-1), torch.ones(2))
    assert statistics["dropped_L"].tolist() == [0, 0]
    (x_BTD.sum() * 0 + terms["balance"] + terms["router_z"]).backward()
    assert all(layer.router.weight.grad is not None and layer.router.weight.grad.abs().sum() > 0 for layer in layers)


def test_the_auxiliary_loss_evens_the_load_out() -> None:
    layer, x_ND = skewed()
    optimizer = torch.optim.SGD([layer.router.weight], lr=0.3)
    before = unevenness(layer, x_ND)
    for _ in range(60):
        layer(x_ND)
        (layer.routed.balance / len(x_ND)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert unevenness(layer, x_ND) < before / 2


def test_the_bias_evens_the_load_out_without_a_loss() -> None:
    layer, x_ND = skewed(balance="bias", router="sigmoid", bias_rate=0.02)
    before = unevenness(layer, x_ND)
    for _ in range(100):
        layer(x_ND)
        layer.load_E = layer.routed.chosen_E
        update_biases(layer)
    assert unevenness(layer, x_ND) < before / 4
    assert layer.router.weight.grad is None


def skewed(**changes: Any) -> tuple[Experts, Tensor]:
    """A router that sends most tokens to the same experts."""
    layer, x_ND = experts(**changes), torch.randn(400, 32) + 0.5
    with torch.no_grad():
        layer.router.weight.normal_(std=0.05)
        layer.router.weight[:2] += 0.1
        if layer.bias_E is not None:
            layer.bias_E.zero_()
    return layer, x_ND


def unevenness(layer: Experts, x_ND: Tensor) -> float:
    layer(x_ND)
    return (layer.routed.chosen_E.std() / layer.routed.chosen_E.mean()).item()


def test_biases_follow_the_load_of_the_whole_step_and_of_all_workers() -> None:
    torch.manual_seed(0)
    model = Moe(config(balance="bias", bias_rate=0.5), VOCAB_SIZE)
    loads = []
    for _ in range(2):  # two micro-batches
        model.features(torch.randint(0, VOCAB_SIZE, (3, 20)))
        model.auxiliary()
        loads.append([layer.routed.chosen_E for layer in experts_of(model)])
    update_biases(model, total=lambda load_E: load_E + torch.tensor([900.0, 0, 0, 0, 0, 0]))  # what the others report
    for layer, first, second in zip(experts_of(model), *loads, strict=True):
        load_E = first + second + torch.tensor([900.0, 0, 0, 0, 0, 0])
        assert layer.bias_E is not None
        torch.testing.assert_close(layer.bias_E, 0.5 * torch.sign(load_E.mean() - load_E))
        assert layer.load_E is None
    assert "blocks.0.feed_forward.bias_E" in model.state_dict()


def test_statistics_are_of_all_passes_and_all_workers() -> None:
    torch.manual_seed(0)
    model = Moe(config(capacity_factor=0.5), VOCAB_SIZE)
    chosen, dropped, entropies = [], [], []
    for rows in (3, 1):  # two micro-batches of different sizes
        model.features(torch.randint(0, VOCAB_SIZE, (rows, 20)))
        model.auxiliary()
        routed = [layer.routed for layer in experts_of(model)]
        chosen.append(torch.stack([layer.chosen_E for layer in routed]))
        dropped.append(torch.stack([layer.dropped for layer in routed]))
        entropies.append(torch.stack([layer.entropy for layer in routed]))
    assert all(each.any() for each in dropped)
    found = model.router_statistics(total=lambda counts: 2 * counts)  # another worker did the same
    load_LE = chosen[0] + chosen[1]
    torch.testing.assert_close(found["shares_LE"], load_LE / load_LE.sum(-1, keepdim=True))
    torch.testing.assert_close(found["dropped_L"], 2 * (dropped[0] + dropped[1]))
    torch.testing.assert_close(found["entropy_L"], (3 * entropies[0] + entropies[1]) / 4)
    assert found["assigned_L"].tolist() == [2 * 80 * 2] * 2
    forget_loads(model)
    assert all(not layer.counts().any() for layer in experts_of(model))


def test_validation_adds_nothing_to_the_load() -> None:
    model = Moe(config(balance="bias"), VOCAB_SIZE).eval()
    model.features(torch.zeros(1, 8, dtype=torch.long))
    model.auxiliary()
    update_biases(model)
    assert all(layer.bias_E is not None and not layer.bias_E.any() for layer in experts_of(model))


def test_recomputed_layers_route_and_learn_alike() -> None:
    torch.manual_seed(0)
    model, tokens_BT = Moe(config(capacity_factor=1.0), VOCAB_SIZE), torch.randint(0, VOCAB_SIZE, (3, 20))

    def gradients(kept: str) -> list[Tensor]:
        for block in model.blocks:
            block.checkpointing = kept
        loss = model.features(tokens_BT).square().sum() + sum(model.auxiliary().values())
        return list(torch.autograd.grad(loss, list(model.blocks.parameters())))

    for kept in ("selective", "full"):
        for ours, theirs in zip(gradients(kept), gradients("none"), strict=True):
            assert torch.equal(ours, theirs)


def test_a_later_token_changes_no_earlier_logit() -> None:
    torch.manual_seed(0)
    model = Moe(config(), VOCAB_SIZE).eval()
    tokens_BT = torch.randint(0, VOCAB_SIZE, (1, 20))
    changed_BT = tokens_BT.clone()
    changed_BT[0, 12] = (tokens_BT[0, 12] + 1) % VOCAB_SIZE
    before, after = model(tokens_BT)[0], model(changed_BT)[0]
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])
