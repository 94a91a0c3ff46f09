"""Predictions against reality: kept bytes against autograd's hooks, peaks against processes, layouts against practice."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from flows import cli
from llm.data import tokenizer
from llm.data.config import TokenizeConfig
from llm.data.hashing import weight_fingerprints
from llm.data.rows import Rows
from llm.errors import ArtifactError, CapacityError, RecipeError
from llm.model import families, shape, sizes
from llm.model.config import DecoderConfig, ModelConfig, parse_model
from llm.model.weights import save
from llm.plan import check, cost, forecast, layout, machine, memory, origins, teachers
from llm.plan.layout import Cluster
from llm.plan.machine import Machine
from llm.plan.measure import _shortened, measure
from llm.plan.memory import Worker
from llm.recipe import Recipe, load, parse_override
from llm.train import devices, schedule
from llm.train.config import TrainConfig
from llm.train.devices import named
from llm.train.objective import cross_entropy, kinds
from llm.train.parallel import check as parallel
from llm.train.parallel.config import LayoutConfig

LLAMA = {"width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176, "max_positions": 32}
GPT2 = {"architecture": "gpt2", "width": 64, "num_heads": 4, "ffn_width": 256, "max_positions": 32}
MOE = LLAMA | {"architecture": "moe", "num_experts": 4, "experts_per_token": 2, "num_shared_experts": 1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "wide heads": LLAMA | {"head_dim": 32},
    "query and key norms": LLAMA | {"qk_norm": True, "num_kv_heads": 1},
    "dropout": LLAMA | {"dropout": 0.1},
    "mixture": MOE,
    "gpt2": GPT2,
    "bert": GPT2 | {"architecture": "encoder"},
}
MINI = Path(__file__).parent / "mini.yaml"
B, T = 3, 32
QUIET_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def kept_bytes(config: ModelConfig, *, bf16: bool) -> int:
    """Bytes that the hooks see the forward pass keep, a storage once, parameters left out."""
    torch.manual_seed(0)
    model: Any = families.build(config, 64).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        if (place := tensor.untyped_storage().data_ptr()) not in parameters:
            storages[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.features(torch.randint(0, 64, (B, T)))
    return sum(storages.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_keeps_what_autograd_keeps(name: str, bf16: bool) -> None:
    one, two = (parse_model(MODELS[name] | {"num_layers": count}) for count in (1, 2))
    layer = shape.of(one, 64).layers[0]
    casts = 2 * (layer.matrices - (64 * 4 if name == "mixture" else 0)) if bf16 else 0  # the router stays float32
    expected = B * T * layer.saved.bytes(2 if bf16 else 4) + casts
    assert kept_bytes(two, bf16=bf16) - kept_bytes(one, bf16=bf16) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_the_parameters_of_the_module(name: str) -> None:
    config = parse_model(MODELS[name] | {"num_layers": 3})
    blocks = sum(parameter.numel() for path, parameter in families.build(config, 64).named_parameters() if "blocks." in path)
    whole = shape.of(config, 64)
    assert whole.blocks == blocks
    assert whole.parameters == sizes.parameters(config, 64)


SPANS: dict[str, Any] = {"kind": "spans"}
T5 = {"architecture": "encoder_decoder", "width": 64, "num_heads": 4, "ffn_width": 160, "max_positions": 512}
LEARNT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "next token": (LLAMA, {"kind": "next_token"}),
    "spans of one sequence": (LLAMA, SPANS),
    "mixture": (LLAMA, {"kind": "mixture", "parts": [{"share": 1, "objective": SPANS}, {"share": 1, "objective": {"kind": "next_token"}}]}),
    "masked": (GPT2 | {"architecture": "encoder"}, {"kind": "masked"}),
    "narrow embeddings": (GPT2 | {"architecture": "encoder", "embedding_width": 16}, {"kind": "masked"}),
    "t5": (T5, SPANS),
    "uneven t5": (T5 | {"head_dim": 32, "num_decoder_layers": 3, "feed_forward": "relu"}, SPANS | {"share": 0.3}),
    "electra": (
        GPT2
        | {"architecture": "electra", "embedding_width": 32, "generator": {"width": 32, "num_layers": 1, "num_heads": 2, "ffn_width": 64}},
        {"kind": "replaced"},
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_arithmetic_is_what_torch_counts(name: str) -> None:
    """Of attention as plain products, which multiply the masked half of a causal row as well."""
    sizes_of_it, objective_of_it = LEARNT[name]
    config, train = parse_model(sizes_of_it | {"num_layers": 2, "max_positions": 512}), settings(objective=objective_of_it)
    places, V, T = np.arange(4), 300, 256
    rows = Rows(np.random.default_rng(0).integers(3, V, 4 * T + 1).astype(np.uint16), None, T, V)
    objective = kinds.build(train, config.architecture, V, T)
    model = families.build(config, V + objective.extra_ids)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        for batch in kinds.batches(objective, rows, places, places, seed=0):
            terms = objective.sums(model, batch)
            torch.stack([term for term in terms.values() if term.requires_grad]).sum().backward()
    whole = replace(shape.of(config, V + objective.extra_ids, train.objective), causal=False)
    assert shape.flops_per_token(whole, T) * 4 * T == pytest.approx(counter.get_total_flops(), rel=0.015)


def test_a_teacher_takes_memory_and_a_forward_pass(tmp_path: Path) -> None:
    config = parse_model(LLAMA | {"num_layers": 2})
    save(families.build(config, 64), tmp_path)
    alone, taught = settings(), settings(objective={"kind": "distillation", "teacher": str(tmp_path)})
    teacher = shape.of(config, 64)
    more = memory.predict(config, 64, T, taught, Worker()).peak_bytes - memory.predict(config, 64, T, alone, Worker()).peak_bytes
    assert more == 4 * teacher.parameters
    assert teachers.flops_per_token(taught, T) == pytest.approx(shape.flops_per_token(teacher, T) / 3)
    public = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 64,
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(public | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}))
    public_teacher = teachers.shape_of(settings(objective={"kind": "distillation", "teacher": str(tmp_path / "hf")}))
    assert public_teacher is not None
    assert public_teacher.parameters == shape.of(parse_model(GPT2 | {"num_layers": 2}), 64).parameters


def test_tokens_are_those_of_the_stream_that_a_ramp_reads() -> None:
    train = settings(steps=50, global_batch_size=32, micro_batch_size=2, ramp={"rows": 4, "steps": 21})
    assert cost.training_tokens(train, 16) == 16 * sum(schedule.rows(train, step) for step in range(1, 51))


def test_the_chunk_of_logits_is_that_of_the_loss() -> None:
    assert memory.CHUNK_LOGITS == cross_entropy.CHUNK_LOGITS


@pytest.mark.long
@pytest.mark.parametrize(
    ("precision", "checkpointing", "optimizer"), [("fp32", "none", "adamw"), ("bf16", "none", "muon"), ("fp32", "full", "adamw")]
)
def test_a_process_peaks_where_predicted(precision: str, checkpointing: str, optimizer: str) -> None:
    """Training in a process of its own, less what the libraries take, which a model of no size shows."""
    model = DecoderConfig(width=256, num_layers=6, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=512)
    train = settings(precision=precision, activation_checkpointing=checkpointing, optimizer={"kind": optimizer})
    small = DecoderConfig(width=64, num_layers=1, num_heads=1, num_kv_heads=1, ffn_width=64, max_positions=512)
    floor = measure(small, 64, 512, settings(precision=precision), steps=2, variables=QUIET_MALLOC)
    measured = measure(model, 8192, 512, train, steps=2, variables=QUIET_MALLOC)
    predicted = memory.predict(model, 8192, 512, train, Worker(bf16=precision == "bf16"))
    assert predicted.peak_bytes - predicted.process_bytes == pytest.approx(measured.peak_bytes - floor.peak_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("precision", "checkpointing", "optimizer", "measured_mib"),
    [("fp32", "none", "adamw", 1176), ("bf16", "none", "muon", 1012), ("fp32", "full", "adamw", 868)],
)
def test_a_usual_heap_takes_what_it_took(precision: str, checkpointing: str, optimizer: str, measured_mib: int) -> None:
    """Peaks of the processes above with glibc's malloc as it is, measured once: fragments make them vary from machine to machine."""
    model = DecoderConfig(width=256, num_layers=6, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=512)
    train = settings(precision=precision, activation_checkpointing=checkpointing, optimizer={"kind": optimizer})
    predicted = memory.predict(model, 8192, 512, train, Worker(bf16=precision == "bf16", heap_share=memory.HEAP_SHARE))
    assert predicted.peak_bytes == pytest.approx(measured_mib * 2**20, rel=0.1)


def settings(**changes: object) -> TrainConfig:
    plain: dict[str, object] = {"steps": 100, "global_batch_size": 8, "micro_batch_size": 8, "schedule": {"warmup_steps": 0}}
    return TrainConfig.model_validate(plain | changes)


def test_what_does_not_fit_names_the_setting_of_its_fullest_moment() -> None:
    model = DecoderConfig(width=256, num_layers=4, num_heads=4, num_kv_heads=2, ffn_width=704, max_positions=4096)
    with pytest.raises(CapacityError, match=r"finetune\.train\.micro_batch_size.*activation_checkpointing.*cluster\.layout\.shard"):
        memory.check(memory.predict(model, 1024, 4096, settings(), Worker()), 2**30, section="finetune.train")
    huge = model.model_copy(update={"width": 2048, "ffn_width": 8192})
    with pytest.raises(CapacityError, match=r"cluster\.layout\.shard.*optimizer\.state_bits"):
        memory.check(memory.predict(huge, 1024, 16, settings(micro_batch_size=1, global_batch_size=1), Worker()), 2**30)
    memory.check(memory.predict(model, 1024, 16, settings(), Worker()), 2**30)


def test_a_tensor_layout_is_not_sent_to_eight_bits() -> None:
    huge = DecoderConfig(width=2048, num_layers=4, num_heads=4, num_kv_heads=2, ffn_width=8192, max_positions=4096)
    needed = memory.predict(huge, 1024, 16, settings(micro_batch_size=1, global_batch_size=1), Worker())
    with pytest.raises(CapacityError) as refused:
        memory.check(needed, 2**30, tensor=2)
    assert refused.value.remedy == "raise cluster.layout.shard, or lower model.width"


ORIGIN = {"width": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 176}
TAUGHT: dict[str, Any] = {"kind": "distillation"}


def written(config: ModelConfig, folder: Path, vocab_size: int = 1024) -> str:
    folder.mkdir()
    save(families.build(config, vocab_size), folder)
    return str(folder)


def refusal(setting: str, folder: str, **changes: Any) -> str:
    """What the check says to the mini recipe with a model in one of its settings; nothing if it says nothing."""
    value = TAUGHT | {"teacher": folder} if setting.endswith("objective") else folder
    try:
        check._check_origins(load(str(MINI), {setting: value} | changes))
    except (ArtifactError, RecipeError) as error:
        (line,) = str(error).splitlines()
        return f"{type(error).__name__}: {line}"
    return ""


@pytest.mark.parametrize("setting", ["train.initial", "train.objective", "finetune.train.objective"])
def test_a_model_that_is_missing_or_damaged_is_refused_before_anything_runs(setting: str, tmp_path: Path) -> None:
    named_by = setting.replace("objective", "objective.teacher")
    assert f"ArtifactError: no model where {named_by} says: {tmp_path / 'none'}; set {named_by} to" in refusal(
        setting, str(tmp_path / "none")
    )
    (tmp_path / "config.json").write_text("[]")
    assert "ArtifactError: no model where" in refusal(setting, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert f"ArtifactError: sizes of the model that {named_by} names can't be read" in refusal(setting, str(tmp_path))


def test_initial_weights_of_another_model_are_refused_by_what_differs(tmp_path: Path) -> None:
    fitting = written(parse_model(ORIGIN), tmp_path / "fitting")
    assert refusal("train.initial", fitting) == ""
    assert refusal("train.initial", fitting, **{"model.dropout": 0.1, "model.max_positions": 512}) == ""
    wider = "width 64 instead of 128, ffn_width 176 instead of 352 in"
    assert wider in refusal("train.initial", fitting, **{"model.width": 128, "model.ffn_width": 352})
    gpt2 = {"architecture": "gpt2", "width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 176, "max_positions": 256}
    assert "architecture decoder instead of gpt2 in" in refusal("train.initial", fitting, model=gpt2)
    assert "fewer token ids than the tokenizer: 1024 instead of 1025" in refusal("train.initial", fitting, **{"tokenize.vocab_size": 1025})


def test_a_public_checkpoint_is_checked_as_it_will_be_read(tmp_path: Path) -> None:
    theirs = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=176,
        vocab_size=1024,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    LlamaForCausalLM(theirs).save_pretrained(tmp_path)
    assert refusal("train.initial", str(tmp_path)) == ""
    assert refusal("train.objective", str(tmp_path)) == ""
    assert "num_layers 2 instead of 3 in" in refusal("train.initial", str(tmp_path), **{"model.num_layers": 3})
    (tmp_path / "config.json").write_text(json.dumps(theirs.to_dict() | {"model_type": "mamba"}))
    origins._read.cache_clear()
    assert "architecture of the public checkpoint is unknown: mamba" in refusal("train.initial", str(tmp_path))


def test_a_teacher_needs_the_recipe_s_vocabulary_where_that_is_known(tmp_path: Path) -> None:
    teacher = written(parse_model(ORIGIN | {"num_layers": 1}), tmp_path / "teacher", vocab_size=1000)
    for setting in ("train.objective", "finetune.train.objective"):
        assert "RecipeError: teacher has another vocabulary than the recipe's tokenizer: 1000 instead of 1024 ids" in refusal(
            setting, teacher
        )
        assert refusal(setting, teacher, **{"tokenize.tokenizer.kind": "byte_bpe"}) == ""  # may end with fewer ids
        assert refusal(setting, teacher, **{"tokenize.vocab_size": 1000}) == ""


def test_an_imported_tokenizer_tells_its_ids(tmp_path: Path) -> None:
    texts = [path.read_text() for path in sorted(Path(check.__file__).parent.glob("*.py"))]
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.train(texts, TokenizeConfig(vocab_size=500)))
    imported = {"tokenize.tokenizer": {"kind": "imported", "path": str(tmp_path)}}
    small = written(parse_model(ORIGIN), tmp_path / "small", vocab_size=499)
    assert "499 instead of 500" in refusal("train.initial", small, **imported)
    assert refusal("train.initial", written(parse_model(ORIGIN), tmp_path / "enough", vocab_size=512), **imported) == ""


def test_no_key_is_made_of_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder of a model"):
        weight_fingerprints(tmp_path / "none")


FLOAT8 = {"train.precision": "fp8"}


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (Machine("cpu"), "multiply float8: cpu; set train.precision to bf16, or train on an H100 or later"),
        (Machine("cuda", "NVIDIA A100-SXM4-80GB", 8, 80 * 2**30), "multiply float8: NVIDIA A100-SXM4-80GB; set train.precision"),
        (Machine("cuda", "NVIDIA H200", 8, 141 * 2**30), ""),
        (Machine("cuda", "NVIDIA of tomorrow", 8, 141 * 2**30), ""),  # whoever computes there will know
    ],
)
def test_float8_is_refused_where_no_chip_multiplies_it(here: Machine, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "this", lambda cluster: here)
    recipe = load(str(MINI), FLOAT8)
    with pytest.raises(CapacityError, match=message) if message else nullcontext():
        check._check_precision(recipe)
    check._check_precision(load(str(MINI)))


def test_float8_on_a_cluster_to_be_joined_is_refused_only_on_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check._check_precision(load(str(MINI), FLOAT8))
    with pytest.raises(CapacityError, match="multiply float8: cpu"):
        check._check_precision(load(str(MINI), FLOAT8 | {"cluster.use_gpu": False}))


def test_a_group_of_parts_that_may_shrink_is_refused_before_it_starts() -> None:
    recipe = load(str(MINI), {"cluster.workers": 2, "cluster.min_workers": 2, "cluster.layout.shard": 2})
    with pytest.raises(RecipeError, match=r"can't come and go: 2; set cluster\.min_workers to null"):
        check._check_layout(recipe)


def test_states_of_adamw_are_zero_s_sixteen_bytes() -> None:
    """ZeRO, figure 1, with float32 throughout: 4 of weights, 4 of gradients, 8 of optimizer, all divided by the shards."""
    model, train = llama_8b(), settings(optimizer={"kind": "adamw"})
    for shards in (1, 8):
        predicted = memory.predict(model, 128_256, 8192, train, Worker("cuda", True, LayoutConfig(shard=shards)))
        states = predicted.parameters_bytes + predicted.gradients_bytes + predicted.optimizer_bytes
        assert states == pytest.approx(16 * 8_030_261_248 / shards, rel=1e-6)


def llama_8b() -> DecoderConfig:
    return DecoderConfig(
        width=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_width=14336, max_positions=8192, tied_embeddings=False
    )


def llama_70b() -> DecoderConfig:
    return DecoderConfig(
        width=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffn_width=28672, max_positions=8192, tied_embeddings=False
    )


LARGE = {"optimizer": {"kind": "adamw"}, "precision": "bf16", "micro_batch_size": 1}


def test_eight_billion_on_one_machine_are_sharded() -> None:
    """torchtitan, docs/performance.md, table 1: Llama 3.1 8B on 8 H100s by FSDP with selective checkpointing.

    There 5,762 tokens per second and GPU, and 6,667 compiled.
    """
    train = settings(global_batch_size=16, **LARGE)
    choice = layout.choose(llama_8b(), 128_256, 8192, train, Cluster(8, 8, 80, named("H100")))
    assert choice.best.name == "shard 8"
    assert 0.85 * 5_762 < 16 * 8192 / choice.best.seconds / 8 < 1.15 * 6_667
    assert any(line.startswith("replicate 8: doesn't fit") for line in choice.why)


def test_seventy_billion_on_sixty_four_are_sharded_and_split() -> None:
    """torchtitan trains Llama 3.1 70B by FSDP and tensor parallelism together, the latter inside machines of 8."""
    train = settings(global_batch_size=256, **LARGE)
    choice = layout.choose(llama_70b(), 128_256, 8192, train, Cluster(64, 8, 80, named("H100")))
    assert choice.best.layout.shard >= 8
    assert 2 <= choice.best.layout.tensor <= 8
    assert choice.best.memory.peak_bytes < 80 * 2**30


WIDE_EXPERTS = {"architecture": "moe", "width": 6144, "num_layers": 2, "num_heads": 48, "num_kv_heads": 8, "ffn_width": 16384}


def test_a_layer_that_no_gpu_could_gather_has_its_experts_spread() -> None:
    model = parse_model(WIDE_EXPERTS | {"num_experts": 64, "experts_per_token": 2, "max_positions": 4096})
    train, cluster = settings(global_batch_size=64, **LARGE), Cluster(64, 8, 80, named("H100"))
    choice = layout.choose(model, 32_000, 4096, train, cluster)
    assert choice.best.name == "shard 64 × expert 64"
    assert choice.best.memory.peak_bytes < cluster.usable_bytes
    assert any(line.startswith("shard 64: doesn't fit") for line in choice.why)
    parallel.check(choice.best.layout, model, train.model_copy(update={"micro_batch_size": choice.best.micro_batch_size}), 4096, 64)
    with pytest.raises(CapacityError, match="no layout fits"):  # 64 workers can't share 48 experts out evenly
        layout.choose(model.model_copy(update={"num_experts": 48, "ffn_width": 22528}), 32_000, 4096, train, cluster)


def test_experts_are_moved_or_their_tokens_are() -> None:
    """Weights that are gathered cost the same for every batch; tokens that travel cost more the more there are."""
    model, cluster = parse_model(WIDE_EXPERTS | {"num_experts": 64, "experts_per_token": 2}), Cluster(8, 8, 80, named("H100"))
    whole, spread, gathered = shape.of(model, 32_000), LayoutConfig(shard=8, expert=8), LayoutConfig(shard=8)

    def exchange(degrees: LayoutConfig, rows: int) -> float:
        train = settings(global_batch_size=8 * rows, precision="bf16", micro_batch_size=rows)
        return layout.step_seconds(whole, 64, train, cluster, degrees, 1)[1]

    assert exchange(spread, 1) < exchange(gathered, 1) / 10
    assert exchange(spread, 8) - exchange(spread, 4) == pytest.approx(2 * (exchange(spread, 4) - exchange(spread, 2)), rel=0.05)


def test_a_slow_network_keeps_the_exchange_inside_machines() -> None:
    model = llama_8b()
    train = settings(global_batch_size=64, **LARGE)
    slow, fast = (
        layout.choose(model, 128_256, 8192, train, Cluster(32, 8, 80, named("H100"), link)).best for link in ("ethernet", "infiniband")
    )
    assert (slow.layout.shard, slow.replicate) == (8, 4)
    assert slow.seconds > fast.seconds


def test_a_small_model_is_replicated_and_one_gpu_needs_no_layout() -> None:
    model = DecoderConfig(width=768, num_layers=12, num_heads=12, num_kv_heads=12, ffn_width=2048, max_positions=1024)
    train = settings(global_batch_size=512, precision="bf16")
    alone = layout.choose(model, 50_257, 1024, train, Cluster(1, 1, 80, named("A100")))
    assert alone.best.name == "one GPU"
    assert alone.best.kinds == frozenset()
    several = layout.choose(model, 50_257, 1024, train, Cluster(8, 8, 80, named("A100")))
    assert len(several.best.kinds) == 1
    assert several.best.seconds < alone.best.seconds / 6


SHIPPED = [("gpt2-124m", 8), ("bert-base", 32), ("moe-small", 16), ("llama-1b", 1), ("llama-1b", 128), ("llama-1b", 512)]
SHIPPED += [("llama-8b", 8), ("llama-8b", 256), ("llama-70b", 64), ("llama-70b", 512), ("llama-70b", 1024)]


@pytest.mark.parametrize(("recipe", "gpus"), SHIPPED)
def test_the_settings_of_a_layout_make_a_recipe_that_the_engine_takes(recipe: str, gpus: int) -> None:
    loaded, cluster = load(recipe), Cluster(gpus, min(gpus, 8), 80, named("H100"))
    lines = forecast.elsewhere(loaded, cluster)
    (settings_line,) = (text for label, text in lines if label == "set")
    planned = load(recipe, dict(parse_override(text) for text in settings_line.removeprefix("--set ").split(" --set ")))
    assert planned.cluster.workers == gpus
    choice = layout.choose(loaded.model, loaded.tokenize.vocab_size, loaded.tokenize.row_tokens, loaded.train, cluster)
    assert planned.cluster.layout == choice.best.layout
    for train in (planned.train, planned.finetune.train):
        parallel.check(planned.cluster.layout, planned.model, train, planned.tokenize.row_tokens, gpus)
    assert {"pretrain", "finetune", "model", "memory", "layout", "step", "time", "cost", "data"} <= {label for label, _ in lines}


def test_a_layout_undoes_what_else_a_recipe_sets() -> None:
    given = {"cluster.min_workers": 8, "cluster.layout": {"shard": 8}, "finetune.train.ramp": {"rows": 32, "steps": 9}}
    loaded = load("llama-1b", given)
    lines = forecast.elsewhere(loaded, Cluster(4, 4, 80, named("H100")))
    (settings_line,) = (text for label, text in lines if label == "set")
    planned = load("llama-1b", given | dict(parse_override(text) for text in settings_line.removeprefix("--set ").split(" --set ")))
    assert planned.cluster.min_workers is None
    assert planned.cluster.workers == 4


@pytest.mark.parametrize("recipe", ["llama-1b", "llama-8b", "llama-70b"])
def test_the_recipes_that_ship_fit_the_gpus_that_they_name(recipe: str) -> None:
    loaded, h100 = load(recipe), Cluster(8, 8, 80, named("H100"))
    for train in (loaded.train, loaded.finetune.train):
        assert check.predicted(loaded, train, Machine("cuda", "H100", 8, 80 * 2**30)).peak_bytes < h100.usable_bytes


def test_trainings_are_those_of_the_flow() -> None:
    tiny = load("tiny")
    assert [list(forecast.trainings(tiny, flow)) for flow in ("prepare", "pretrain", "finetune", "lifecycle")] == [
        [],
        ["pretrain"],
        ["pretrain", "finetune"],
        ["pretrain", "finetune"],
    ]


def test_what_is_never_finetuned_is_not_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "this", lambda cluster: Machine("cuda", "H100", 8, 80 * 2**30))
    huge = {"finetune.train.micro_batch_size": 8192, "finetune.train.global_batch_size": 8192, "cluster.workers": 1}
    check._check_memory(load("bert-base", huge))
    with pytest.raises(CapacityError, match=r"finetune\.train\.micro_batch_size"):
        check._check_memory(load("llama-1b", huge | {"cluster.layout.shard": 1, "train.micro_batch_size": 1}))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA L40", "NVIDIA L40 (taken for an A100)"),
        ("NVIDIA RTX A1000", "NVIDIA RTX A1000 (taken for an A100)"),
    ],
)
def test_a_gpu_is_known_by_whole_words(name: str, found: str) -> None:
    assert devices.gpu(name).name == found


def test_measured_steps_drop_what_a_short_training_has_no_room_for() -> None:
    train = settings(schedule={"kind": "wsd", "warmup_steps": 9, "decay_steps": 50}, ramp={"rows": 4, "steps": 9}, stop_after_validations=2)
    assert _shortened(train, workers=2, steps=6).schedule.decay_steps is None


def test_every_layout_divides_the_cluster() -> None:
    train = settings(global_batch_size=64, **LARGE)
    for candidate in layout._candidates(llama_70b(), 128_256, 8192, train, Cluster(64, 8, 80, named("H100"))):
        assert candidate.layout.model_workers * candidate.replicate == 64
        assert candidate.layout.tensor <= 8


@pytest.mark.parametrize("option", ["gpus", "gpus_per_node", "gpu_memory_gib"])
def test_impossible_numbers_are_refused_by_name(option: str) -> None:
    options: dict[str, Any] = {"gpus": 8, option: -8}
    with pytest.raises(RecipeError, match=f"--{option.replace('_', '-')} is too small: -8"):
        cli.plan(recipe="llama-1b", **options)


def test_measuring_here_says_nothing_about_another_cluster() -> None:
    with pytest.raises(RecipeError, match="--measure trains on this machine, and --gpus asks about another cluster: 8; leave out one"):
        cli.plan(recipe="llama-1b", gpus=8, measure=True)


def test_what_fits_nowhere_and_what_does_not_divide() -> None:
    with pytest.raises(CapacityError, match="no layout fits 8 GPUs of 24 GiB"):
        layout.choose(llama_70b(), 128_256, 8192, settings(**LARGE), Cluster(8, 8, 24, named("L4")))
    with pytest.raises(RecipeError, match=r"train\.global_batch_size"):
        layout.choose(
            llama_8b().model_copy(update={"num_layers": 31}),
            128_256,
            2048,
            settings(global_batch_size=9, micro_batch_size=1),
            Cluster(7, 7, 80, named("H100")),
        )


def test_chinchilla_s_own_model_suits_its_tokens() -> None:
    """70 billion parameters for 1.4 trillion tokens, https://arxiv.org/abs/2203.15556."""
    data = cost.Data(tokens=1_400_000_000_000, suited_tokens=20 * 70_000_000_000, unique_tokens=1_400_000_000_000)
    assert data.warnings == ()
    assert data.epochs == 1
    short, repeated = cost.Data(10, 100, None), cost.Data(100, 100, 10)
    assert "10% of the 20 tokens per parameter" in short.warnings[0]
    assert "read 10.0 times" in repeated.warnings[0]


def test_energy_of_a_gpu_day_is_its_watts_times_a_day() -> None:
    one = priced({"workers": 1, "layout": {}, "price": {"gpu_hour_usd": 2, "pue": 1.1, "kg_co2e_per_kwh": 0.5}})
    rate = cost.training_tokens(one.train, one.tokenize.row_tokens) / 86_400
    found = cost.estimate(one, one.train, named("H100"), precision="bf16", cuda=True, tokens_per_second=rate)
    assert (found.usd, found.kwh, found.kg_co2e) == pytest.approx((48, 0.7 * 24 * 1.1, 0.35 * 24 * 1.1))


def test_cores_are_paid_as_a_budget_counts_them() -> None:
    cores = priced({"workers": 2, "layout": {}, "cpus_per_worker": 3, "threads_per_worker": 1, "price": {"cpu_hour_usd": 0.5}})
    rate = cost.training_tokens(cores.train, cores.tokenize.row_tokens) / 3600
    found = cost.estimate(cores, cores.train, devices.CPU_CORE, precision="fp32", cuda=False, tokens_per_second=rate)
    assert found.usd == pytest.approx(2 * 3 * 0.5)


def priced(cluster: dict[str, Any]) -> Recipe:
    return load("llama-1b", {"cluster": cluster})


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (LLAMA, "onnx/ with model.onnx; huggingface/ with LlamaForCausalLM"),
        (T5, "onnx/ with encoder_model.onnx and decoder_model_merged.onnx; huggingface/ with T5ForConditionalGeneration"),
        (MOE, "model.num_shared_experts 1; change that, or serve its ONNX folder"),
    ],
)
def test_a_plan_says_what_is_exported(model: dict[str, Any], told: str) -> None:
    section = parse_model({"num_layers": 2, **model})
    recipe = load("tiny").model_copy(update={"model": section})
    assert told in " ".join(text for _, text in forecast.exported(recipe))
