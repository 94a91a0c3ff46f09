"""The image and the manifests for serving: locked down, and in agreement with the code that they start."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.serve.schema import ServeDeploySchema

from flows.cli import app
from llm.cluster.serve import Arguments
from llm.serve.models.spec import ModelSpec
from tests.test_house import imported

FOLDER = Path(__file__).parents[2] / "infra" / "serve"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
MANIFESTS = {name: yaml.safe_load((FOLDER / name).read_text()) for name in ("kserve.yaml", "rayservice.yaml")}


def pods(manifest: Any) -> Iterator[dict[str, Any]]:
    """Every pod that a manifest describes."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


PODS = [pytest.param(pod, id=f"{name} {place}") for name, manifest in MANIFESTS.items() for place, pod in enumerate(pods(manifest))]


def instruction(name: str) -> list[str]:
    """The arguments of an instruction in exec form, its last occurrence."""
    found: list[str] = json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    return found


def test_there_are_pods_to_look_at() -> None:
    assert len(PODS) == 3


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_no_rights(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod["initContainers"]]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pod", PODS)
def test_pods_mount_what_they_name(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounted = [mount for container in [*pod["containers"], *pod["initContainers"]] for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounted} == volumes
    writable = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")}
    assert {"/tmp", "/var/trainyard"} <= writable
    assert pod["securityContext"]["runAsUser"] == int(re.findall(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)[-1])


def test_kserve_asks_for_health_and_readiness() -> None:
    (container,) = MANIFESTS["kserve.yaml"]["spec"]["predictor"]["containers"]
    port = container["ports"][0]["containerPort"]
    assert container["livenessProbe"]["httpGet"] == container["startupProbe"]["httpGet"] == {"path": "/health", "port": port}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": port}


@pytest.mark.parametrize("command", [instruction("CMD"), MANIFESTS["kserve.yaml"]["spec"]["predictor"]["containers"][0]["args"]])
def test_command_lines_are_those_of_the_command(command: list[str]) -> None:
    assert instruction("ENTRYPOINT") == ["trainyard"]
    function, bound, _ = app.parse_args(shlex.join(command), print_error=False, exit_on_error=False)
    assert function.__name__ == "serve"
    assert bound.arguments["host"] == "0.0.0.0"
    assert bound.arguments["keys"], "without keys it refuses to listen beyond loopback"
    assert [ModelSpec.parse(text).sources[0].source.text for text in bound.args] == ["/mnt/models"]


def test_an_engine_takes_as_many_threads_as_its_pod_has_cores() -> None:
    (container,) = MANIFESTS["kserve.yaml"]["spec"]["predictor"]["containers"]
    _, bound, _ = app.parse_args(shlex.join(container["args"]), print_error=False, exit_on_error=False)
    assert bound.arguments["threads"] == int(container["resources"]["limits"]["cpu"])


def test_ray_knows_the_configuration() -> None:
    configuration = yaml.safe_load(MANIFESTS["rayservice.yaml"]["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(configuration).applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    arguments = Arguments.model_validate(application.args)
    assert arguments.settings.keys
    assert arguments.replicas.least <= arguments.replicas.most
    assert configuration["http_options"]["request_timeout_s"] > arguments.settings.limits.request_seconds


def test_the_image_runs_without_rights() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert "/health" in final
    assert not re.search(r"^(CMD|ENTRYPOINT) [^\[]", final, re.MULTILINE), "a shell would not pass SIGTERM on"
    assert not re.search(r"^ARG BASE=", DOCKERFILE, re.MULTILINE), "a default would be a tag, and tags move"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(names: Iterator[str]) -> set[str]:
    """Distributions of a requirements file and all that they bring with them, here and now."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        extras = requirement.extras or {""}
        if name in found or not any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        found.add(name)
        try:
            brought = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        waiting += [each for each in brought if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)]
    return found


OPTIONAL = {"opentelemetry"}  # traces, where somebody installs them


def test_the_image_installs_what_serving_imports() -> None:
    """Whatever the modules that a server loads import themselves, early or late."""
    code = """
import sys
import flows.cli, llm.serve.endpoint.server, llm.serve.models.rehearsal
print("torch" in sys.modules, *{module.__file__ for name, module in sys.modules.items() if name.startswith("llm.")})
"""
    torch, *files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    owners = packages_distributions()
    tops = {name.partition(".")[0] for file in files for name in imported(Path(file))}
    lines = [line.partition("#")[0].strip() for line in (FOLDER / "requirements.txt").read_text().splitlines()]
    installed = needed(line for line in lines if line) | {"trainyard"}
    assert torch == "False"
    assert {top for top in tops & owners.keys() if not installed & {canonical(owner) for owner in owners[top]}} <= OPTIONAL
