"""Kill the data stages again and again, at random moments, and compare what they end with.

    python tests/drills/data_kills.py --kills 50

Raw text to rows, in a process of its own, which SIGKILL ends at a random moment; the same command follows until it is through.
Then the store is emptied and it begins anew, until there were as many kills. Each kill is a JSON line that says what was there
by then; the last line says PASS if every finished store holds what an undisturbed one does, to the sha256.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

STAGES = ("collect", "clean", "dedup", "tokenize")
PIECE_BYTES = 200_000  # many parts from a small corpus


def main(kills: int, seed: int) -> int:
    """Undisturbed once, then disturbed until `kills` have landed; the verdict."""
    chance, same = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="trainyard-kills-") as name:
        corpus, store = Path(name) / "corpus", Path(name) / "store"
        corpus.mkdir()
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-p]*.py")):
            shutil.copy(path, corpus)
        began = time.monotonic()
        subprocess.run([sys.executable, __file__, "--prepare", store, corpus], check=True)
        usual_seconds, wanted = time.monotonic() - began, digests(store)
        landed = 0
        while landed < kills:
            shutil.rmtree(store)
            finished = False
            while not finished:
                finished = attempt(store, corpus, chance.uniform(0, usual_seconds) if landed < kills else None)
                landed += not finished
            same.append(digests(store) == wanted and not [*store.glob("*/.tmp-*"), *store.glob("*/.parts/.tmp-*")])
    print(json.dumps({"verdict": "PASS" if all(same) else "FAIL", "kills": landed, "finished": len(same), "identical": sum(same)}))
    return 0 if all(same) else 1


def attempt(store: Path, corpus: Path, kill_after_seconds: float | None) -> bool:
    """One start of the stages; True if it got through before it was killed."""
    process = subprocess.Popen([sys.executable, __file__, "--prepare", store, corpus])
    try:
        status = process.wait(timeout=kill_after_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        parts = {stage: len(list((store / stage / ".parts").glob("[!.]*"))) for stage in STAGES}
        torn = [path.name for path in store.glob("*/.parts/.tmp-*")]
        print(
            json.dumps({"committed": [stage for stage in STAGES if (store / stage / "key").exists()], "parts": parts, "amid": torn}),
            flush=True,
        )
        return False
    if status:
        raise RuntimeError(f"the stages ended with {status}")
    return True


def digests(store: Path) -> dict[str, str]:
    return {stage: json.loads((store / stage / "key" / "manifest.json").read_text())["digest"] for stage in STAGES}


def prepare(root: Path, corpus: Path) -> None:
    """Raw text to rows in this process."""
    from llm.artifact import Store
    from llm.data.clean import clean
    from llm.data.collect import collect
    from llm.data.config import CleanConfig, CollectConfig, DedupConfig, TokenizeConfig
    from llm.data.dedup import dedup
    from llm.data.encode import tokenize
    from llm.data.parts import Workshop
    from llm.data.sources import files
    from llm.data.sources.config import FilesSource

    files.PIECE_BYTES = PIECE_BYTES
    store, made = Store(root), list[Path]()
    store.sweep()
    source = FilesSource(path=str(corpus), patterns=("*.py",), domain="code")
    builds: dict[str, Callable[..., dict[str, Any]]] = {
        "collect": lambda out, shop: collect(CollectConfig(sources=(source,)), out, shop),
        "clean": lambda out, shop: clean(made[-1], out, CleanConfig(), shop),
        "dedup": lambda out, shop: dedup(made[-1], out, DedupConfig(validation_share=0.05, test_share=0.05), shop),
        "tokenize": lambda out, shop: tokenize(made[-1], out, TokenizeConfig(vocab_size=1000, row_tokens=64, sample_bytes=300_000), shop),
    }
    for stage, build in builds.items():
        made.append(store.produce(stage, "key", {}, partial(build, shop=Workshop(root / stage / ".parts"))).path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--kills", type=int, default=50)
        parser.add_argument("--seed", type=int, default=0)
        arguments = parser.parse_args()
        sys.exit(main(arguments.kills, arguments.seed))
