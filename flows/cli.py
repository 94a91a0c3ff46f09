"""The `trainyard` command: parses, calls and prints."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from llm.artifact import Store
from llm.errors import ArtifactError, RecipeError, TrainyardError
from llm.recipe import load, parse_override
from llm.run import home
from llm.stages import SCORED, STAGES, nodes

Flow = Literal["prepare", "pretrain", "finetune", "lifecycle"]
Set = Annotated[list[str] | None, Parameter(name="--set", negative="", help="override a setting, as train.steps=500; may be repeated")]

app = App(name="trainyard", help="Raw text to a served language model, kept fresh.", version_flags=["--version"])
console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run one command; an error that Trainyard knows is one line on stderr and exit status 1."""
    try:
        app()
    except TrainyardError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("cancelled; the same command continues", file=sys.stderr)
        sys.exit(130)


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    return dict(parse_override(text) for text in settings or [])


@app.command
def run(flow: Flow, *, recipe: str = "tiny", set: Set = None) -> None:
    """Run a flow here and now, from wherever an earlier run of the same recipe got to."""
    from flows.services import join_ray, prefect_api
    from llm.plan.check import check

    overrides, store = _overrides(set), Store(home())
    store.sweep()
    loaded = load(recipe, overrides)
    nodes(flow, loaded.model.architecture)
    check(loaded, store)
    join_ray(store)
    with prefect_api(store):
        function = getattr(importlib.import_module(f"flows.{flow}"), flow)
        _say_errors_once()
        folder = Path(function(recipe=recipe, overrides=overrides))
    _print_summary(json.loads((folder / "summary.json").read_text()))


def _say_errors_once() -> None:
    """Keep from the terminal the tracebacks of errors that `main` says in one line; Prefect's API still gets them."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], TrainyardError)))


def _print_summary(summary: dict[str, Any]) -> None:
    if trained := summary["stages"].get("base", {}).get("pretrain"):
        console.print(f"base: {trained['path']}")
    for group, scores in summary["metrics"].items():
        baseline = summary["baseline"]["kneser_ney_bits_per_byte"]
        console.print(f"{group}: {scores['bits_per_byte']:.3f} bits per byte on test text (Kneser–Ney bigram {baseline:.3f})")
    for group, exports in summary["exports"].items():
        console.print(f"{group}: {exports['onnx']}")
    console.print(f"report: {summary['report']}")
    console.print(f"{summary['wall_seconds']:.1f} s" + ("; serve it: trainyard serve champion" if summary["exports"] else ""))


@app.command
def sweep(file: str = "small", *, set: Set = None) -> None:
    """Try settings of a recipe and recommend the best. FILE is a sweep file, or the name of one that ships."""
    from flows.services import join_ray, prefect_api
    from llm.plan.check import check
    from llm.sweep.settings import load_sweep

    overrides, store = _overrides(set), Store(home())
    store.sweep()
    for recipe in load_sweep(file, overrides).sizes:
        check(recipe, store)
    join_ray(store)
    with prefect_api(store):
        function = importlib.import_module("flows.sweep").sweep
        _say_errors_once()
        folder = Path(function(file=file, overrides=overrides))
    console.print(f"recommended: {folder / 'recommended.yaml'}")
    console.print(f"report: {folder / 'report.html'}")


@app.command
def plan(
    flow: Flow | None = None,
    *,
    recipe: str = "tiny",
    set: Set = None,
    measure: bool = False,
    gpus: int = 0,
    gpu: str = "H100",
    gpu_memory_gib: float = 0,
    gpus_per_node: int = 8,
    interconnect: Literal["infiniband", "ethernet"] = "infiniband",
) -> None:
    """Say what a run would do and why, what it would take, and whether it fits this machine.

    FLOW is lifecycle, or pretrain for an architecture that doesn't write text. --measure trains a few real steps first.
    --gpus N picks a layout for another cluster, of N GPUs.
    """
    from llm.plan import forecast, layout
    from llm.plan.check import check
    from llm.plan.graph import plan
    from llm.plan.measure import measure_recipe
    from llm.train.devices import named

    _at_least({"gpus": (gpus, 0), "gpus-per-node": (gpus_per_node, 1), "gpu-memory-gib": (gpu_memory_gib, 0)})
    loaded, store = load(recipe, _overrides(set)), Store(home())
    flow = flow or ("lifecycle" if loaded.model.architecture in SCORED else "pretrain")
    trainings = forecast.trainings(loaded, flow)
    if gpus and measure:
        raise RecipeError(
            "--measure trains on this machine, and --gpus asks about another cluster", value=gpus, remedy="leave out one of them"
        )
    if gpus:
        chip = named(gpu)
        cluster = layout.Cluster(gpus, min(gpus, gpus_per_node), gpu_memory_gib or chip.memory_gib, chip, interconnect)
        _print_labelled(forecast.elsewhere(loaded, cluster, finetunes="finetune" in trainings))
        return
    check(loaded, store)
    table = Table("stage", "would", "seconds last time", "because", box=None, pad_edge=False)
    for step in plan(loaded, store, flow):
        seconds = "–" if step.seconds is None else f"{step.seconds:.0f}"
        table.add_row(step.node, step.state, seconds, "\n".join(_first(step.reasons)))
    console.print(table)
    for stage, train in trainings.items():
        _print_labelled(forecast.here(loaded, stage, train, measure_recipe(loaded, train) if measure else None))
    if flow != "prepare":
        _print_labelled(forecast.exported(loaded))


def _at_least(options: dict[str, tuple[float, float]]) -> None:
    """Raises: RecipeError for an option below its least value."""
    for name, (value, least) in options.items():
        if value < least:
            raise RecipeError(f"--{name} is too small", value=value, remedy=f"set --{name} to {least} or more")


def _print_labelled(lines: list[tuple[str, str]]) -> None:
    for label, text in lines:
        console.print(f"{label:8} {text}", markup=False)


def _first(reasons: tuple[str, ...], most: int = 6) -> list[str]:
    return [*reasons[:most], *([f"and {len(reasons) - most} more"] if len(reasons) > most else [])]


@app.command
def why(stage: str = "", *, run: str = "latest") -> None:
    """Say why each stage of a run was computed again, or that it was cached. STAGE is a name such as pretrain."""
    from llm.lineage import why

    table = Table("stage", "state", "because", box=None, pad_edge=False)
    for explained in why(Store(home()), run):
        if stage in ("", explained.node, explained.node.split(".")[1]):
            table.add_row(explained.node, explained.state, "\n".join(_first(explained.reasons)))
    console.print(table)


@app.command
def lineage(what: str = "", *, run: str = "latest") -> None:
    """Show what an artifact descends from, or where a document went and which models saw it.

    WHAT is an artifact as <stage>/<key>, or the id of a document; by default the last artifact of the run.
    """
    from llm.lineage import ancestors, committed, find_run, last_made

    store = Store(home())
    if what and what.partition("/")[0] not in STAGES:
        _print_trace(store, what)
        return
    path = store.root / what if what else last_made(find_run(store, run))
    for depth, found in ancestors(store, committed(store, path)):
        facts = found.manifest
        console.print(f"{'  ' * depth}{facts['node']}  {facts['stage']}/{facts['key']}  {facts['created']}  {facts['git_commit']}")


def _print_trace(store: Store, document: str) -> None:
    """Raises: ArtifactError if no collection of the store met the document; it names those whose ids are like that."""
    from llm.trace import near, trace

    stations = trace(store, document)
    if not stations:
        similar = ", ".join(near(store, document))
        remedy = f"name one of these: {similar}" if similar else "name a part of its id, such as a file's name"
        raise ArtifactError("no such document in this store", value=document, remedy=remedy)
    for station in stations:
        console.print(f"{'  ' * station.depth}{station.artifact}  {station.fate}", markup=False)


@app.command
def status() -> None:
    """List the last runs of this store, what is up, and the champions."""
    from flows.processes import Ledger
    from llm.lineage import summaries
    from llm.registry import champions

    store = Store(home())
    table = Table("run", "flow", "state", "seconds", "computed", "cached", box=None, pad_edge=False)
    for summary in summaries(store)[-10:]:
        states = [stage["state"] for group in summary["stages"].values() for stage in group.values()]
        seconds = f"{summary['wall_seconds']:.0f}"
        table.add_row(
            summary["run_id"], summary["flow"], summary["state"], seconds, str(states.count("computed")), str(states.count("cached"))
        )
    console.print(table)
    for process in Ledger(store).alive():
        console.print(f"up: {process.role} (process {process.pid}) {process.facts.get('url', '')}")
    for champion in champions(store):
        console.print(f"champion: {champion.name} version {champion.number}  {champion.path}")


@app.command
def up(*, port: int = 4200, dashboard_port: int = 8265) -> None:
    """Start what stays up between runs: Prefect's server, a worker with every deployment, Ray with its dashboard."""
    from flows.services import start_all

    for line in start_all(Store(home()), port=port, dashboard_port=dashboard_port):
        console.print(line)


@app.command
def down() -> None:
    """End exactly the processes that `trainyard up` started."""
    from flows.services import stop_all

    for line in stop_all(Store(home())):
        console.print(line)


@app.command
def serve(
    *models: str,
    config: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    keys: Path | None = None,
    slots: int | None = None,
    threads: int | None = None,
    variant: str | None = None,
    replicas: int = 0,
) -> None:
    """Serve ONNX models, on 127.0.0.1 unless --host says otherwise.

    MODELS are folders, `champion` (the newest, followed), NAME@champion, NAME@VERSION, each perhaps as ID=…; by default champion.
    CONFIG is a YAML file of settings; the other options come on top of it. --host beyond this machine needs --keys FILE.
    With REPLICAS, as many copies at most answer on Ray Serve, fewer while there is little to do.
    """
    from llm.serve.endpoint.server import serve
    from llm.serve.endpoint.settings import load_settings
    from llm.serve.models.spec import ModelSpec

    engine = {"slots": slots, "threads": threads, "variant": variant}
    settings = load_settings(config, {"host": host, "port": port, "keys": keys}, engine)
    specs = [ModelSpec.parse(text) for text in models or ("champion",)]
    if replicas:
        from llm.cluster.serve import Replicas, serve_replicas

        serve_replicas(specs, settings, Replicas(most=replicas))
    else:
        serve(specs, settings)


@app.command
def chat(*, url: str = "http://127.0.0.1:8000", model: str = "", key_env: str = "") -> None:
    """Talk with a served model. Input from a pipe is one message. --key-env names the variable that holds a key."""
    from llm.serve.chat import chat

    chat(url, model=model, key_env=key_env)


@app.command
def traffic(folder: Path, *, forget: str = "") -> None:
    """Make an artifact of the answers and ratings that a server kept in FOLDER. --forget ID takes an answer out of it instead."""
    from llm.serve.observe import traffic

    if forget:
        console.print(f"{traffic.forget(folder, forget)} lines taken out")
        return
    artifact = traffic.commit(folder, Store(home()))
    console.print(f"{artifact.path}: " + ", ".join(f"{count} {name}" for name, count in artifact.manifest["counts"].items()))


@app.command
def key(name: str, *, requests_per_minute: int = 0, tokens_per_minute: int = 0, concurrent: int = 0, days: int = 0) -> None:
    """Make a key for the server: its line for the file goes to stdout, the secret, shown once, to stderr.

    trainyard key NAME >> keys; chmod 600 keys. A limit of 0 is none; DAYS is how long the key is valid.
    """
    from llm.serve.endpoint.keys import make_key

    _at_least({"days": (days, 0)})
    secret, line = make_key(
        name, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrent=concurrent, days=days
    )
    print(line)
    print(f"the key, shown only now: {secret}", file=sys.stderr)


@app.command
def promote(name: str, version: int = 0, *, rollback: bool = False) -> None:
    """Make a registered version the champion by hand, or go back to the champion before (--rollback)."""
    from llm.registry import of_store

    registry = of_store(Store(home()))
    if rollback:
        chosen = registry.rollback(name)
    else:
        with registry.deciding():
            chosen = registry.promote(name, version)
    console.print(f"champion: {chosen.name} version {chosen.number}  {chosen.path}")


@app.command
def gc(*, keep_runs: int = 3, delete: bool = False) -> None:
    """Show what may be deleted: all that no champion, its predecessor or the last runs descend from. --delete does it."""
    from flows.processes import Ledger
    from llm.lineage import delete as delete_all
    from llm.lineage import garbage
    from llm.registry import retained

    store = Store(home())
    items = garbage(store, keep_runs=keep_runs, keep=[version.path for version in retained(store)])
    for item in items:
        console.print(f"{item.bytes / 1e6:10.2f} MB  {item.path}")
    total = sum(item.bytes for item in items) / 1e6
    if not delete:
        console.print(f"{total:10.2f} MB in {len(items)} folders would be freed; add --delete to do it")
        return
    if going := Ledger(store).alive("run"):
        raise ArtifactError(
            "a run is going on", value=Path(going[0].facts["folder"]).name, remedy="wait for it, then `trainyard gc --delete`"
        )
    console.print(f"{delete_all(items) / 1e6:10.2f} MB freed")


@app.command
def doctor() -> None:
    """Check versions, services, disk, memory, cores and GPU, each with the remedy where something is wrong."""
    from flows.doctor import examine

    findings = examine(Store(home()))
    for finding in findings:
        console.print(
            f"{'ok ' if finding.healthy else 'BAD'}  {finding.what:9} {finding.fact}" + (f"; {finding.remedy}" if finding.remedy else "")
        )
    if not all(finding.healthy for finding in findings):
        sys.exit(1)
