"""Instruction pairs from documented functions: what does this code do, and write the code that does this."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from llm.data.config import ChatConfig
from llm.data.document import Document
from llm.data.hashing import share
from llm.data.template import Conversation, Turn

DESCRIBE = "What does this function do?\n\n"
IMPLEMENT = "Write this function:\n\n"
CUT = "    ..."

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """A documented function, cut from its module and moved to the left margin."""

    id: str
    name: str
    description: str  # first paragraph of the docstring, on one line
    header: str  # from `def` to the colon
    code: str  # header and body, without the docstring


def functions(document: Document) -> Iterator[Function]:
    """The documented functions and methods of a Python module, in order.

    Raises: SyntaxError if the document isn't Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        module = ast.parse(document.text)
    lines = document.text.split("\n")
    for node in ast.walk(module):
        if isinstance(node, FunctionNode) and (docstring := ast.get_docstring(node)):
            statement = node.body[0]
            if statement.lineno > node.lineno:
                yield _function(document.id, node, statement, docstring, lines)


def conversation(function: Function, config: ChatConfig) -> Conversation:
    """The function as one question and answer.

    The hash of its id chooses the kind, so that a function's code is never the answer to one pair and the question of
    another; code that is too long for an answer is described instead.
    """
    fits = function.code != function.header and len(function.code) <= config.max_answer_characters
    if fits and share(function.id, "implement") < config.implement_share:
        return _pair(function.id, "implement", f"{IMPLEMENT}{function.header}\n\n{function.description}", function.code)
    question = DESCRIBE + _shortened(function.code, config.max_question_characters - len(DESCRIBE))
    return _pair(function.id, "describe", question, f"`{function.name}`: {function.description}")


def _pair(id: str, kind: str, question: str, answer: str) -> Conversation:
    return Conversation(id, kind, (Turn("user", question), Turn("assistant", answer)))


def _function(document_id: str, node: FunctionNode, statement: ast.stmt, docstring: str, lines: list[str]) -> Function:
    header = lines[node.lineno - 1 : statement.lineno - 1]
    body = lines[statement.end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(header + body)).strip("\n")
    paragraph = docstring.strip().split("\n\n")[0]
    return Function(
        id=f"{document_id}:{node.lineno}",
        name=node.name,
        description=" ".join(paragraph.split()),
        header="\n".join(code.split("\n")[: len(header)]),
        code=code,
    )


def _shortened(code: str, room: int) -> str:
    """The code, or as many of its first lines as there is room for."""
    if len(code) <= room:
        return code
    end = code.rfind("\n", 0, max(0, room - len(CUT)))
    return f"{code[: max(0, end)]}\n{CUT}"
