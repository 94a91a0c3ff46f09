"""The chat template: how a conversation is written in tokens, and which of them the loss counts.

begin `<|user|>` question `<|end|>` `<|assistant|>` answer `<|end|>`, and so on for further turns. What the assistant says
counts, and the `<|end|>` that closes it. There is no system turn: such a text stands before the first question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm.data.tokenizer import Tokenizer
from llm.errors import DataError


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: str  # user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of user and assistant in alternation; `kind` tells conversations of one make from another."""

    id: str
    kind: str
    turns: tuple[Turn, ...]


def turns(messages: Sequence[Mapping[str, str]]) -> tuple[Turn, ...]:
    """Messages as OpenAI's API writes them, with a system message put before the first question.

    Raises: DataError if user and assistant don't alternate, beginning with the user.
    Example:
        >>> turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        (Turn(role='user', content='Be brief.\\n\\nHi'),)
    """
    opening = [message["content"] for message in messages[:1] if message["role"] == "system"]
    found = [Turn(message["role"], message["content"]) for message in messages[len(opening) :]]
    expected = ["user", "assistant"] * len(found)
    if not found or [turn.role for turn in found] != expected[: len(found)]:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError("user and assistant must take turns", value=roles or "no messages", remedy="begin with user, then alternate")
    return (Turn("user", "\n\n".join([*opening, found[0].content])), *found[1:])


def encode(tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
    """Token ids, and for each 1 if it is a target that counts."""
    ids, mask = [tokenizer.bos], [0]
    for turn in turns:
        said = [*tokenizer.encode(turn.content), tokenizer.end]
        answer = turn.role == "assistant"
        ids += [tokenizer.assistant if answer else tokenizer.user, *said]
        mask += [0, *[int(answer)] * len(said)]
    return ids, mask


def prompt_ids(tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[int]:
    """The conversation so far, ready for the assistant to speak; generation stops at `tokenizer.end`."""
    return [*encode(tokenizer, turns)[0], tokenizer.assistant]
