"""The deploy room before the tools of others; and these refuse what is wrong in it."""

import copy

import jsonschema
import kubernetes_validate
import pytest

from tests.deployed import (
    DEPLOY,
    DOCKERFILE,
    LAUNCHER,
    MANIFESTS,
    README,
    autoscaled,
    check_manifest,
    cluster_of,
    hadolint,
    launched,
    shell_of,
    shellcheck,
    yamllint,
)

MANIFEST = pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
COMMANDS = [
    command
    for key, commands in LAUNCHER.items()
    if key.endswith("_commands")
    for command in commands
]


def harmed(values, path, value):
    """Copy nested values with another one at the end of a path."""
    copied = copy.deepcopy(values)
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copied


@MANIFEST
def test_kubernetes_and_kuberay_know_each_field(manifest):
    check_manifest(manifest)


WORKER = ("workerGroupSpecs", 0)
POD = (*WORKER, "template", "spec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*WORKER, "maxReplica"), 3),
        ((*WORKER, "minReplicas"), "1"),
        ((*WORKER, "minReplicas"), -1),
        ((*WORKER, "groupName"), "Of Mine"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("headGroupSpec", "serviceType"), "Public"),
        (("autoscalerOptions", "idleTimeout"), 300),
        (("autoscalerOptions", "version"), "v3"),
        (("enableInTreeAutoscaling",), "yes"),
        (("authOptions", "mode"), "open"),
        (("workerGroupSpecs",), []),
    ],
    ids=str,
)
@MANIFEST
def test_the_schema_refuses_what_kuberay_does_not_know(manifest, path, value):
    before = ("spec",) if cluster_of(manifest) is manifest["spec"] else ("spec", "rayClusterSpec")
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(harmed(manifest, (*before, *path), value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*POD, "toleration"), []),
        ((*POD, "tolerations", 0, "efect"), "NoSchedule"),
        ((*POD, "securityContext", "runAsUser"), "root"),
        ((*POD, "containers", 0, "image"), 1),
        ((*POD, "containers", 0, "resources", "limit"), {"cpu": "1"}),
        (("autoscalerOptions", "securityContext", "allowEscalation"), False),
    ],
    ids=str,
)
@MANIFEST
def test_kubernetes_refuses_what_it_does_not_know(manifest, path, value):
    before = ("spec",) if cluster_of(manifest) is manifest["spec"] else ("spec", "rayClusterSpec")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_manifest(harmed(manifest, (*before, *path), value))


@MANIFEST
def test_rays_autoscaler_reads_the_groups_as_they_are_meant(manifest):
    types = autoscaled(manifest)
    resources = {name: type_["resources"] for name, type_ in types.items()}
    counted = {name: (r["CPU"], r.get("GPU", 0)) for name, r in resources.items()}
    assert counted == {"headgroup": (0, 0), "cpu": (4, 0), "gpu": (4, 1)}
    most = {name: (type_["min_workers"], type_["max_workers"]) for name, type_ in types.items()}
    assert most == {"headgroup": (0, 0), "cpu": (1, 32), "gpu": (0, 4)}


def test_ray_up_takes_the_launcher_file_and_adds_no_command_of_its_own():
    prepared = launched(copy.deepcopy(LAUNCHER))
    ours = {key: value for key, value in prepared.items() if key.endswith("_commands")}
    assert {command for commands in ours.values() for command in commands} == set(COMMANDS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("head_node_type",), "nowhere"),
        (("max_workers",), 0),
        (("docker", "images"), "x"),
        (("available_node_types", "cpu", "resources", "CPU"), "4"),
        (("available_node_types", "cpu", "spot"), True),
        (("idle_timeout_minutes",), "soon"),
    ],
    ids=str,
)
def test_ray_up_refuses_what_it_does_not_know(path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        launched(harmed(LAUNCHER, path, value))


def test_hadolint_finds_nothing():
    assert hadolint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("USER 1000:1000", "USER root", "DL3002"),
        ("--no-cache-dir --requirement", "--requirement", "DL3042"),
        ("ARG BASE=python:3.12-slim-trixie\nFROM ${BASE}", "FROM python:latest", "DL3007"),
        ("WORKDIR /opt/lookalike", "WORKDIR opt", "DL3000"),
        ("apt-get install --yes", "apt-get install", "DL3014"),
    ],
)
def test_hadolint_finds_what_is_wrong(old, new, rule):
    assert DOCKERFILE.count(old) == 1
    assert rule in hadolint(DOCKERFILE.replace(old, new))


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_yamllint_finds_nothing_but_what_is_wrong(path):
    text = path.read_text()
    assert yamllint(text) == []
    assert yamllint(text + "kind: twice\nkind: twice\n")


@pytest.mark.parametrize("script", [*COMMANDS, *shell_of(README)], ids=lambda text: text[:30])
def test_shellcheck_finds_nothing_but_what_is_wrong(script):
    assert shellcheck(script) == ""
    assert "SC2086" in shellcheck(f"{script}\nrm $HOME/$1\n")
