"""Two hundred folders that somebody might hand to a server: a good one, each with one thing wrong."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, helper


@dataclass(frozen=True)
class Case:
    """A change to a good folder. `refused` is False where the folder may still be served, None where either will do."""

    name: str
    change: Callable[[Path, Path], None]  # the `onnx` folder, and the folder outside it with the secret
    refused: bool | None = True


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    return [*outside(), *operators(), *shapes(), *bombs(), *configs(), *tokenizers(), *files(), *models(), *harmless()]


def edited(edit: Callable[[ModelProto], object]) -> Callable[[Path, Path], None]:
    """A change of the graph alone."""

    def change(folder: Path, _: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        edit(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return change


LOCATIONS: dict[str, Callable[[Path], str]] = {
    "parent": lambda outside: f"../{outside.name}/secret",
    "absolute": lambda outside: str(outside / "secret"),
    "two slashes": lambda outside: f"/{outside / 'secret'}",
    "dotted": lambda outside: f"./.././{outside.name}/secret",
    "down and up": lambda outside: f"sub/../../{outside.name}/secret",
    "symbolic link": lambda _: "link",
    "linked folder": lambda _: "folder/secret",
    "hard link": lambda _: "hard",
    "pipe": lambda _: "pipe",
    "pipe outside": lambda outside: str(outside / "pipe"),
    "url": lambda outside: f"file://{outside / 'secret'}",
    "backslash": lambda outside: f"..\\{outside.name}\\secret",
    "memory": lambda _: "*/_ORT_MEM_ADDR_/*",
    "environment": lambda _: "/proc/self/environ",
    "zeros": lambda _: "/dev/zero",
    "nothing": lambda _: "",
    "folder itself": lambda _: ".",
}


def outside() -> Iterator[Case]:
    """Tensors that lie elsewhere: every kind of place, hidden everywhere that a graph keeps tensors."""
    for (location, where), (holder, hide) in product(LOCATIONS.items(), HIDERS.items()):
        yield Case(f"{location} in {holder}", _stealing(where, hide))


def _stealing(where: Callable[[Path], str], hide: Callable[[ModelProto, TensorProto], object]) -> Callable[[Path, Path], None]:
    def change(folder: Path, outside: Path) -> None:
        (folder / "link").symlink_to(outside / "secret")
        (folder / "folder").symlink_to(outside)
        os.link(outside / "secret", folder / "hard")
        os.mkfifo(folder / "pipe")
        tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=where(outside))
        edited(lambda model: hide(model, tensor))(folder, outside)

    return change


def _initializer(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Identity", ["stolen"], ["unused"]))


def _constant(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def _sparse(values: TensorProto | None = None, indices: TensorProto | None = None) -> onnx.SparseTensorProto:
    values = values or helper.make_tensor("values", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    indices = indices or helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    return helper.make_sparse_tensor(values, indices, [8])


def _typed(tensor: TensorProto, data_type: int) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.data_type = data_type
    return copy


def _branch(model: ModelProto, tensor: TensorProto) -> None:
    output = helper.make_tensor_value_info("stolen", TensorProto.FLOAT, [4])
    branch = helper.make_graph([], "branch", [], [output], initializer=[tensor])
    condition = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.node.append(helper.make_node("Constant", [], ["yes"], value=condition))
    model.graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))


def _function(model: ModelProto, tensor: TensorProto) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    opset = helper.make_opsetid("", 23)
    model.functions.append(helper.make_function("local", "Steal", [], ["y"], [constant], [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("Steal", [], ["unused"], domain="local"))


def _attribute_list(model: ModelProto, tensor: TensorProto) -> None:
    node = model.graph.node[0]
    node.attribute.append(onnx.AttributeProto(name="stolen", type=onnx.AttributeProto.TENSORS, tensors=[tensor]))


def _training(model: ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


HIDERS: dict[str, Callable[[ModelProto, TensorProto], Any]] = {
    "an initializer": _initializer,
    "a constant": _constant,
    "a sparse initializer": lambda model, tensor: model.graph.sparse_initializer.append(_sparse(values=tensor)),
    "a sparse constant": lambda model, tensor: model.graph.node.append(
        helper.make_node("Constant", [], ["unused"], sparse_value=_sparse(indices=_typed(tensor, TensorProto.INT64)))
    ),
    "a branch": _branch,
    "a function": _function,
    "an attribute's list": _attribute_list,
    "training": _training,
}


def operators() -> Iterator[Case]:
    """Operators that load libraries, read files, never end, or are nobody's."""
    known = [
        ("com.microsoft", "EPContext"),
        ("com.microsoft", "PyOp"),
        ("com.microsoft", "WordConvEmbedding"),
        ("com.microsoft", "Tokenizer"),
        ("com.microsoft", "GreedySearch"),
        ("com.microsoft.nchwc", "Conv"),
        ("com.microsoft.extensions", "StringJoin"),
        ("ai.onnx.contrib", "PythonOp"),
        ("ai.onnx.ml", "TreeEnsemble"),
        ("ai.onnx.preview.training", "Adam"),
        ("org.pytorch.aten", "ATen"),
        ("custom", "Evil"),
        ("", "NoSuchOperator"),
        ("", "Loop"),
        ("", "Scan"),
        ("", "SequenceMap"),
    ]
    for domain, name in known:
        node = helper.make_node(name, ["input_ids"], ["unused"], domain=domain)
        yield Case(f"{domain or 'ai.onnx'}:{name}", edited(lambda model, node=node: _import(model, node)))


def _import(model: ModelProto, node: onnx.NodeProto) -> None:
    if node.domain:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))
    model.graph.node.append(node)


def shapes() -> Iterator[Case]:
    """Tensors that claim more than they have."""
    claims = {
        "overflow": [2**32, 2**32],
        "overflow to little": [2**62, 4],
        "negative": [-1, -4],
        "many axes": [1] * 100,
        "too many": [2**40],
        "one more": [65],
    }
    for name, dims in claims.items():
        tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
        yield Case(f"shape: {name}", edited(lambda model, tensor=tensor: _initializer(model, tensor)))
    parts: dict[str, list[tuple[str, str]]] = {
        "beyond the end": [("offset", "60"), ("length", "16")],
        "negative offset": [("offset", "-8"), ("length", "16")],
        "negative length": [("length", "-16")],
        "no number": [("offset", "four")],
        "huge offset": [("offset", str(2**70))],
        "two locations": [("location", "../outside/secret")],
    }
    for name, entries in parts.items():
        yield Case(f"part: {name}", _in_part(entries))


def _in_part(entries: list[tuple[str, str]]) -> Callable[[Path, Path], None]:
    def change(folder: Path, outside: Path) -> None:
        (folder / "weights").write_bytes(bytes(64))
        tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in [("location", "weights"), *entries]:
            tensor.external_data.add(key=key, value=value)
        edited(lambda model: _initializer(model, tensor))(folder, outside)

    return change


def bombs() -> Iterator[Case]:
    """Little that asks for much: at load, where constants are folded, or at the first step."""
    for name, nodes in {
        "ConstantOfShape": [("ConstantOfShape", ["size"])],
        "Expand": [("Expand", ["one", "size"])],
        "Tile": [("Tile", ["one", "size"])],
        "RandomNormal": [],
        "Range": [("Range", ["zero", "end", "step"])],
        "Concat": [],
        "chained Expand": [("Expand", ["one", "size"]), ("Add", ["bomb0", "bomb0"])],
    }.items():
        yield Case(f"bomb: {name}", edited(lambda model, name=name, nodes=nodes: _explode(model, name, nodes)))
    yield Case("bomb: functions", edited(_double_functions))
    yield Case("bomb: nested branches", _nest)
    yield Case("bomb: empty messages", edited(lambda model: model.graph.node.extend([onnx.NodeProto()] * 300_000)))


def _explode(model: ModelProto, name: str, nodes: list[tuple[str, list[str]]]) -> None:
    """The bomb feeds the logits, or it would be cut off before anybody lit it."""
    integers = {"size": [2**40], "zero": 0, "end": 2**40, "step": 1}
    for key, value in integers.items():
        dims = [1] if isinstance(value, list) else []
        model.graph.initializer.append(helper.make_tensor(key, TensorProto.INT64, dims, value if isinstance(value, list) else [value]))
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    made = [helper.make_node(operator, inputs, [f"bomb{place}"]) for place, (operator, inputs) in enumerate(nodes)]
    if name == "Concat":
        made = [
            helper.make_node("Concat", ["one" if level == 0 else f"bomb{level - 1}"] * 2, [f"bomb{level}"], axis=0) for level in range(40)
        ]
    if name == "RandomNormal":
        made = [helper.make_node("RandomNormal", [], ["bomb0"], shape=[2**40])]
    last = made[-1].output[0]
    made += [
        helper.make_node("Cast", [last], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats"], ["sum"], keepdims=0),
    ]
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == "logits":
                node.output[place] = "calm"
    model.graph.node.extend([*made, helper.make_node("Add", ["calm", "sum"], ["logits"])])


def _double_functions(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    model.opset_import.append(opsets[1])
    for level in range(40):
        call = ("Identity", "") if level == 0 else (f"F{level - 1}", "local")
        nodes = [helper.make_node(call[0], ["x"], ["y"], domain=call[1]), helper.make_node(call[0], ["y"], ["z"], domain=call[1])]
        model.functions.append(helper.make_function("local", f"F{level}", ["x"], ["z"], nodes, opsets))
    model.graph.node.append(helper.make_node("F39", ["input_ids"], ["unused"], domain="local"))


def _nest(folder: Path, _: Path) -> None:
    """Graphs in attributes of nodes of graphs, deeper than protobuf's own library writes."""
    graph = b""
    for _level in range(10_000):
        graph = _field(1, _field(5, _field(6, graph)))
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes() + _field(7, graph))


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, length = b"", len(content)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def configs() -> Iterator[Case]:
    """What config.json might claim."""
    lies: list[tuple[str, Any]] = [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 2),
        ("num_hidden_layers", "1"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", None),
        ("max_position_embeddings", 10**12),
        ("max_position_embeddings", 1.5),
        ("max_position_embeddings", float("inf")),
        ("num_key_value_heads", 3),
        ("head_dim", 10**30),
        ("head_dim", 7),
        ("vocab_size", 601),
        ("vocab_size", [600]),
    ]
    for key, value in lies:
        refused = None if (key, value) == ("num_hidden_layers", 2) else True  # the engine may count the layers itself
        yield Case(f"config: {key} {value}", _lying(key, value), refused)
    contents = {"empty": b"", "no JSON": b"{", "a list": b"[]", "deep": b"[" * 100_000, "not UTF-8": b'"\xff"', "large": b" " * 2**21}
    for name, content in contents.items():
        yield Case(f"config: {name}", _written("config.json", content))


def _lying(key: str, value: object) -> Callable[[Path, Path], None]:
    def change(folder: Path, _: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def _written(name: str, content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, _: (folder / name).write_bytes(content) and None


def tokenizers() -> Iterator[Case]:
    """Tokenizers that are none, or more than one asked for."""
    noise = random.Random(5).randbytes(10_000)
    for name, content in {"empty": b"", "noise": noise, "zeros": bytes(2**20), "text": b"hello"}.items():
        yield Case(f"tokenizer: {name}", _written("tokenizer.model", content))
    giant = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}, "added_tokens": []}
    for name, text in {"deep": "[" * 200_000, "giant id": json.dumps(giant), "nothing": "{}", "no JSON": "{"}.items():
        yield Case(f"tokenizer.json: {name}", _imported(text.encode()))


def _imported(content: bytes) -> Callable[[Path, Path], None]:
    def change(folder: Path, _: Path) -> None:
        (folder / "tokenizer.model").unlink()
        (folder / "tokenizer.json").write_bytes(content)

    return change


def files() -> Iterator[Case]:
    """Files that are no files, or another's."""
    for name, (kind, replace) in product(("model.onnx", "config.json", "tokenizer.model"), REPLACEMENTS.items()):
        refused = (
            True if name != "tokenizer.model" or kind in ("a symbolic link", "a hard link") else None
        )  # tokenizer.json stands in for it
        yield Case(
            f"{name} is {kind}", lambda folder, outside, name=name, replace=replace: _replaced(folder / name, outside, replace), refused
        )


def _replaced(path: Path, outside: Path, replace: Callable[[Path, Path], object]) -> None:
    path.unlink()
    replace(path, outside)


REPLACEMENTS: dict[str, Callable[[Path, Path], object]] = {
    "gone": lambda path, outside: None,
    "a folder": lambda path, outside: path.mkdir(),
    "a pipe": lambda path, outside: os.mkfifo(path),
    "a symbolic link": lambda path, outside: path.symlink_to(outside / "secret"),
    "a hard link": lambda path, outside: os.link(outside / "secret", path),
    "a link to a device": lambda path, outside: path.symlink_to("/dev/zero"),
}


def models() -> Iterator[Case]:
    """Bytes that are no graph, and graphs that are no language model."""
    noise = random.Random(7).randbytes(5_000)
    for name, content in {
        "empty": b"",
        "noise": noise,
        "a zip": b"PK\x03\x04" + noise,
        "a pickle": b"\x80\x04cos\nsystem\n",
        "ORT format": b"\0\0\0\0ORTM" + noise,
    }.items():
        yield Case(f"graph: {name}", _written("model.onnx", content))
    for share in (0.1, 0.5, 0.9, 0.999):
        yield Case(f"graph: {share:.1%} of it", lambda folder, _, share=share: _cut(folder / "model.onnx", share))
    for seed in range(12):
        yield Case(f"graph: flipped {seed}", lambda folder, _, seed=seed: _flip(folder / "model.onnx", seed), refused=None)
    yield Case("graph: no logits", edited(lambda model: model.graph.output.pop(0)))
    yield Case("graph: another input", edited(lambda model: _rename_input(model, "input_ids", "ids")))
    yield Case("graph: not finite", edited(lambda model: _scale_logits(model, float("nan"))))
    yield Case("graph: no past", edited(lambda model: model.graph.output.pop()))


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _flip(path: Path, seed: int) -> None:
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(20):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _rename_input(model: ModelProto, old: str, new: str) -> None:
    for value in model.graph.input:
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new if name == old else name


def _scale_logits(model: ModelProto, factor: float) -> None:
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == "logits":
                node.output[place] = "calm"
    model.graph.initializer.append(helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]))
    model.graph.node.append(helper.make_node("Mul", ["calm", "factor"], ["logits"]))


def harmless() -> Iterator[Case]:
    """Files that other programs would execute, and that a server has no business with."""
    run = "__import__('pathlib').Path('{marker}').write_text('executed')"
    jinja = "{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
    for name, content in {
        "chat_template.jinja": jinja,
        "tokenizer_config.json": '{{"auto_map": {{"AutoTokenizer": ["evil.Evil", null]}}, "chat_template": "{{{{ cycler.__init__ }}}}"}}',
        "evil.py": run,
        "sitecustomize.py": run,
        "conftest.py": run,
        "pytorch_model.bin": "cos\nsystem\n(S'touch {marker}'\ntR.",
        "genai_config.json": '{{"model": {{"decoder": {{"session_options": {{"custom_ops_library": "{library}"}}}}}}}}',
        "model.onnx.data": "secret",
    }.items():
        yield Case(
            f"beside it: {name}", lambda folder, outside, name=name, content=content: _beside(folder / name, outside, content), False
        )


def _beside(path: Path, outside: Path, content: str) -> None:
    path.write_text(content.format(marker=outside / "marker", library=outside / "secret"))
