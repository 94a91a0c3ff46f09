"""The code digest of a stage: what its modules say, whatever their layout and comments."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path

HOUSE = Path(__file__).parent.parent  # where `llm` lies

# Modules that carry a stage but can't change its result. A config's resolved values are part of the key themselves.
PLUMBING = ("llm.errors", "llm.metrics", "llm.report", "llm.config", "llm.artifact", "llm.failpoint")


def code_digests(*entries: str) -> dict[str, str]:
    """Digest of the entry modules and of every module of `llm` that they import, directly or not, by name.

    The closure is read from the source, imports inside functions included, so the list can't be incomplete.
    """
    found: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module], imported = _read(module)
            waiting.extend(imported)
    return dict(sorted(found.items()))


@functools.cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's digest, and the modules of `llm` that count and that it imports."""
    path = _source(module)
    assert path is not None, module
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = tuple(name for name in _imports(tree) if counts(name))
    return hashlib.sha256(normalised(source).encode()).hexdigest()[:16], imported


def _source(module: str) -> Path | None:
    """The file of a module of `llm`, found without importing anything; None if there is none."""
    place = HOUSE / module.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def counts(name: str) -> bool:
    """Whether a module of `llm` can change what a stage produces."""
    return not name.startswith(PLUMBING) and not name.endswith(".config")


def _imports(tree: ast.Module) -> list[str]:
    """Names of the modules of `llm` that a syntax tree imports anywhere."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("llm.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llm":
            modules = [f"{node.module}.{alias.name}" for alias in node.names if _source(f"{node.module}.{alias.name}")]
            names += modules or [str(node.module)]
    return names


def normalised(source: str) -> str:
    """A module's tokens without comments, docstrings and layout, the same on every version of Python."""
    docstrings = {(node.lineno, node.col_offset) for node in map(_docstring, ast.walk(ast.parse(source))) if node is not None}
    lines = source.splitlines(keepends=True)
    texts: list[str] = []
    opened: list[tuple[int, int]] = []  # where f-strings began: newer versions of Python cut them into several tokens
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            opened.append(token.start)
        elif kind == "FSTRING_END":
            start = opened.pop()
            texts += [] if opened else [_between(lines, start, token.end)]
        elif not opened and kind not in ("COMMENT", "NL") and not (kind == "STRING" and token.start in docstrings):
            texts.append(kind if kind in ("NEWLINE", "INDENT", "DEDENT") else token.string)
    ends = [text == "NEWLINE" and (index == 0 or texts[index - 1] in ("NEWLINE", "INDENT")) for index, text in enumerate(texts)]
    return "\n".join(text for text, end in zip(texts, ends, strict=True) if not end)  # without the ends of docstrings' lines


def _docstring(node: ast.AST) -> ast.Constant | None:
    """The docstring of a module, class or function."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not node.body:
        return None
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first.value
    return None


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Source text from one (line, column) to another."""
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    return "".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])
