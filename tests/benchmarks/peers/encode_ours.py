"""R4, ours: distinct words once, with the check that every text comes back."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from encode_corpus import answer, batches, read

from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary.words import Encoder

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    texts, tokenizer = read(folder), Tokenizer.load(folder)
    Encoder(tokenizer)(["what is imported on first use"])
    encoder = Encoder(tokenizer)
    began = time.process_time()
    encoded = [encoder(batch) for batch in batches(texts)]
    seconds = time.process_time() - began
    assert all(each.comes_back.all() for each in encoded)
    answer(seconds, (each.ids for each in encoded))
