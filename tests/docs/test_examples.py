"""The files of docs/examples against the schemas of those who read them, and against this package."""

from __future__ import annotations

import copy
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.runtime_env import RuntimeEnv

import cggm_ray
from cggm_ray.commands.cli import parse
from cggm_ray.engine.configuration import Config
from cggm_ray.storage.base import is_url

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
KUBERNETES = "1.31"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    """A schema of an object that has these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
# Of KubeRay's custom resources the fields that a training needs; Kubernetes' own schema has the pods.
WORKERS = fields(
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=PARAMETERS,
    template=fields("spec", metadata={}, spec={}),
)
CLUSTER = fields(
    *("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"const": "token"}),
    enableInTreeAutoscaling={"const": True},
    autoscalerOptions=fields(idleTimeoutSeconds=NUMBER, upscalingMode=TEXT),
    headGroupSpec=fields(
        "rayStartParams", "template", rayStartParams=PARAMETERS, template=fields("spec", metadata={}, spec={})
    ),
    workerGroupSpecs={"type": "array", "items": WORKERS, "minItems": 1},
)
RAYJOB = fields(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields("name", name=TEXT, labels=PARAMETERS),
    spec=fields(
        *("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / "rayjob.yaml").read_text()))


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        for group in groups
    ]


def test_rayjob_has_the_fields_of_its_kinds(manifests: list[dict[str, Any]]) -> None:
    claim, rayjob = manifests
    jsonschema.validate(rayjob, RAYJOB)
    for manifest in (claim, *pods(rayjob)):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_rayjob_with_a_bucket_mounts_nothing_and_its_workers_fit_the_pods() -> None:
    (rayjob,) = yaml.safe_load_all((EXAMPLES / "rayjob-bucket.yaml").read_text())
    jsonschema.validate(rayjob, RAYJOB)
    head, workers = pods(rayjob)
    for manifest in (head, workers):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        assert "volumes" not in manifest["spec"]
    run = command(rayjob["spec"]["entrypoint"])
    assert is_url(run.run.storage_path)
    assert is_url(str(run.data.data_path))
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (run.run.min_workers, run.run.max_workers)
    limits = workers["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["cpu"], limits["nvidia.com/gpu"]) == (str(run.run.cpus_per_worker), str(int(run.run.use_gpu)))
    assert RuntimeEnv(**yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"]))["uv"]["packages"]
    # Kueue admits no other jobs.
    assert rayjob["spec"]["shutdownAfterJobFinishes"]


def test_a_misspelt_field_of_a_pod_is_seen(manifests: list[dict[str, Any]]) -> None:
    pod = copy.deepcopy(pods(manifests[1])[0])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_all_pods_mount_what_the_command_writes_to(manifests: list[dict[str, Any]]) -> None:
    claim, rayjob = manifests
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    config = command(rayjob["spec"]["entrypoint"])
    for pod in pods(rayjob):
        (volume,), (container,) = pod["spec"]["volumes"], pod["spec"]["containers"]
        (mount,) = container["volumeMounts"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mount["name"] == volume["name"]
        for path in (config.run.storage, Path(str(config.data.data_path))):
            assert path.is_relative_to(mount["mountPath"])


def test_the_workers_fit_the_pods(manifests: list[dict[str, Any]]) -> None:
    spec = manifests[1]["spec"]
    run = command(spec["entrypoint"]).run
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (group["minReplicas"], group["maxReplicas"]) == (run.min_workers, run.max_workers)
    assert container["resources"]["limits"]["cpu"] == str(run.cpus_per_worker)


def command(entrypoint: str) -> Config:
    """The configuration of a pipeline's command line, by the package's own parser."""
    python, pipeline, *flags = shlex.split(entrypoint)
    assert python == "python"
    return parse(runpy.run_path(str(ROOT / pipeline))["RECIPE"], flags).config


def test_versions_are_those_of_the_project(manifests: list[dict[str, Any]]) -> None:
    dockerfile = (EXAMPLES / "Dockerfile").read_text()
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)$", dockerfile, re.M)
    assert base is not None
    version, python = base[1], (int(base[2]), int(base[3]))
    (ray,) = [each for each in PROJECT["dependencies"] if each.startswith("ray[")]
    low, high = re.findall(r"[<>]=?([\d.]+)", ray)
    assert numbers(low) <= numbers(version)[: len(numbers(low))] < numbers(high)
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()
    assert python >= numbers(PROJECT["requires-python"].removeprefix(">="))
    assert manifests[1]["spec"]["rayClusterSpec"]["rayVersion"] == version
    images = {container["image"] for pod in pods(manifests[1]) for container in pod["spec"]["containers"]}
    assert images == set(re.findall(r"--tag (\S+)", dockerfile))
    assert {image.rpartition(":")[2] for image in images} == {cggm_ray.__version__}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_image_is_made_of_files_that_are_there() -> None:
    lines = (EXAMPLES / "Dockerfile").read_text().splitlines()
    for copied in [line.split()[2:-1] for line in lines if line.startswith("COPY")]:
        assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-bucket.yaml"])
def test_the_cluster_of_the_launcher_fits_its_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (EXAMPLES / name).read_text()
    validate_config(prepare_config(yaml.safe_load(text)))
    with pytest.raises(jsonschema.ValidationError, match="setup_command"):
        validate_config(prepare_config({**yaml.safe_load(text), "setup_command": []}))


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-bucket.yaml"])
def test_no_example_goes_without_a_token(name: str) -> None:
    starts = re.findall(r"^.*ray start (?!.*#).*$", (EXAMPLES / name).read_text(), re.M)
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
