"""R4, tokenizers: batches without offsets."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from encode_corpus import answer, batches, read
from tokenizers import Tokenizer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    texts, tokenizer = read(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_batch_fast(["warm"], add_special_tokens=False)
    began = time.process_time()
    encoded = [each for batch in batches(texts) for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
    ids = [each.ids for each in encoded]
    seconds = time.process_time() - began
    answer(seconds, ids)
