"""Tokens with a meaning of their own, and where they stand in a vocabulary that is learned here."""

from __future__ import annotations

UNKNOWN, BOS, EOS = 0, 1, 2
CONTROL = UNKNOWN_PIECE, BOS_PIECE, EOS_PIECE = "<unk>", "<s>", "</s>"
CHAT = USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPACE_MARK = "\u2581"  # what SentencePiece writes for a space, so a literal one must not reach it
