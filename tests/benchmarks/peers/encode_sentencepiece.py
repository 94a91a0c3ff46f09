"""R4, sentencepiece: the faster of one text per call and batches."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import sentencepiece
from encode_corpus import answer, batches, read

if __name__ == "__main__":
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    texts = read(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    processor.encode(["warm"], num_threads=threads)
    began = time.process_time()
    ids = [each for batch in batches(texts) for each in processor.encode(batch, num_threads=threads)]
    seconds = time.process_time() - began
    if threads == 1:
        began = time.process_time()
        ids = [processor.encode(text) for text in texts]
        seconds = min(seconds, time.process_time() - began)
    answer(seconds, ids)
