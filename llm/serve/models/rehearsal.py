"""The first load of a model, in a process that may die of it.

That process reads the model's folder and nothing else (llm/sandbox.py), looks through its files, opens the engine and
generates. The server loads only what came through, so that what breaks a parser, or asks for all memory, breaks the
rehearsal. What it doesn't hold off: a folder that somebody changes between the rehearsal and the load.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llm.errors import ArtifactError, CapacityError, TrainyardError
from llm.sandbox import confine
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling
from llm.serve.models.config import LoadConfig
from llm.serve.models.graph import REMEDY, shown

ROOT = Path(__file__).parents[3]
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
PATIENCE = 4  # how much longer than computing may it take by the clock
ANSWER_BYTES = 2**16
LOOK_SECONDS = 0.1  # between two looks whether to stop

log = logging.getLogger(__name__)


def rehearse(folder: Path, engine: EngineConfig, limits: LoadConfig, *, stop: threading.Event | None = None) -> None:
    """Load the model at `folder` and generate with it, in a process of its own.

    Raises: ArtifactError if that process refuses the folder, dies of it, or takes too long; CapacityError if `stop` is set meanwhile.
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder.resolve()), engine.model_dump_json(), limits.model_dump_json()]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PATH": os.defpath, "PYTHONPATH": paths} | QUIET
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        try:
            output, errors = _heard(child, folder, limits.seconds * PATIENCE, stop)
        except TrainyardError:
            child.kill()
            raise
    answer = _answer(output[:ANSWER_BYTES])
    if answer is None:
        raise ArtifactError(
            "loading the model ended the process that tried", value=f"{folder} ({_end(child.returncode, errors)})", remedy=REMEDY
        )
    if "fact" in answer:
        raise ArtifactError(answer["fact"], value=answer["value"], remedy=answer["remedy"], transient=answer["transient"])
    if answer["lacking"]:
        log.warning(
            "this kernel can't bar %s: a model is loaded first under limits of memory and time only", " or ".join(answer["lacking"])
        )


def _heard(child: subprocess.Popen[bytes], folder: Path, seconds: float, stop: threading.Event | None) -> tuple[bytes, bytes]:
    """What a process writes until it ends, unless it takes longer or is to be stopped."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return child.communicate(timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if stop and stop.is_set():
                raise CapacityError("server is closed", value=folder, remedy="start it again") from None
            if time.monotonic() > deadline:
                raise ArtifactError("model takes too long to load", value=folder, remedy=REMEDY) from None


def _answer(output: bytes) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        return None
    return answer


def _end(status: int, errors: bytes) -> str:
    """The signal that ended it, or the last that it said."""
    said = errors.decode("utf-8", "replace").strip().splitlines()
    return signal.Signals(-status).name if status < 0 else shown(said[-1] if said else f"status {status}")


def _perform(folder: Path, config: EngineConfig, limits: LoadConfig) -> dict[str, Any]:
    """What the process does, and what it says of it."""
    size_bytes = sum(path.lstat().st_size for path in folder.rglob("*"))
    readable = [folder, *([config.draft] if config.draft else [])]
    lacking = confine(readable, memory_bytes=limits.base_bytes + limits.bytes_per_byte * size_bytes, seconds=limits.seconds)
    try:
        warm(Engine(folder, model_id="rehearsal", config=config.model_copy(update={"threads": 1, "slots": 1})))
    except TrainyardError as error:
        return {"fact": error.fact, "value": str(error.value)[:1000], "remedy": error.remedy, "transient": error.transient}
    except Exception as error:  # noqa: BLE001 - libraries raise what they like over a stranger's bytes
        return {"fact": "model can't be loaded", "value": f"{type(error).__name__}: {error}"[:1000], "remedy": REMEDY, "transient": False}
    return {"lacking": lacking}


def warm(engine: Engine) -> None:
    """Read two ids and write two, so that the first request doesn't pay for what is done only once.

    Raises: ArtifactError if what comes out isn't finite.
    """
    prompt = [engine.tokenizer.bos, engine.tokenizer.eos]
    engine.score(prompt, top=0)
    for _ in engine.submit(prompt[:1], Sampling(max_tokens=2, temperature=0)):
        pass


if __name__ == "__main__":
    said = _perform(Path(sys.argv[1]), EngineConfig.model_validate_json(sys.argv[2]), LoadConfig.model_validate_json(sys.argv[3]))
    os.write(sys.stdout.fileno(), json.dumps(said).encode())
    os._exit(0)
