"""Validate deploy/ with the tools of Kubernetes, Ray, Docker, YAML and the shell."""

import copy
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from yamllint import linter
from yamllint.config import YamlLintConfig

from jobs.cli import command_line
from jobs.config import options
from jobs.config.settings import RunSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (DEPLOY / "README.md").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
RAYCLUSTER = yaml.safe_load((DEPLOY / "raycluster.yaml").read_text())
LAUNCHER = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
MANIFESTS = {"rayjob": RAYJOB, "raycluster": RAYCLUSTER}
COMMANDS = [c for key, value in LAUNCHER.items() if key.endswith("_commands") for c in value]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
_SCHEMA = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())
_KUBERNETES = "1.33"
_YAML = "{extends: default, rules: {line-length: {max: 100}, document-start: disable}}"


def cluster_spec(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pod_templates(manifest):
    spec = cluster_spec(manifest)
    templates = [spec["headGroupSpec"]["template"]]
    templates += [group["template"] for group in spec["workerGroupSpecs"]]
    return templates + [
        manifest["spec"][key] for key in ("submitterPodTemplate",) if key in manifest["spec"]
    ]


def validate_manifest(manifest):
    """Raise where a field is unknown to KubeRay or to Kubernetes."""
    jsonschema.validate(manifest, _SCHEMA)
    for template in pod_templates(manifest):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}}
        kubernetes_validate.validate({**wrapped, "template": template}, _KUBERNETES, strict=True)


def run_linter(command, text):
    program = Path(sys.executable).with_name(command[0])
    completed = subprocess.run(
        [program, *command[1:]], input=text, capture_output=True, text=True, check=False
    )
    return completed.stdout


def parse_command(command):
    """Return the settings that the command line makes of `lookalike run …`."""
    program, verb, *arguments = shlex.split(command)
    assert program in PROJECT["scripts"]
    group = command_line()
    with group.make_context(program, [verb, *arguments]) as context:
        parsed = group.get_command(context, verb).make_context(verb, arguments, parent=context)
    settings = RunSettings(**parsed.params)
    options.validate_settings(settings)
    return settings


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_manifests_are_valid(manifest):
    validate_manifest(manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplica=3),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="1"),
        lambda spec: spec["authOptions"].update(mode="open"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(toleration=[]),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(image=1),
    ],
)
@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_validation_refuses_an_unknown_field(manifest, change):
    changed = copy.deepcopy(manifest)
    change(cluster_spec(changed))
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_manifest(changed)


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_ray_autoscaler_reads_the_worker_groups(manifest):
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "any", "namespace": "any"}, "spec": cluster_spec(manifest)}
    )
    resources = {
        name: (node_type["resources"]["CPU"], node_type["resources"].get("GPU", 0))
        for name, node_type in config["available_node_types"].items()
    }
    assert resources == {"headgroup": (0, 0), "cpu": (4, 0), "gpu": (4, 1)}


def test_ray_up_accepts_the_launcher_file():
    prepared = prepare_config(copy.deepcopy(LAUNCHER))
    validate_config(prepared)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config({**copy.deepcopy(LAUNCHER), "max_worker": 3}))


def test_submitted_commands_are_valid():
    entrypoint = RAYJOB["spec"]["entrypoint"]
    settings = parse_command(entrypoint)
    assert settings.json
    assert all(p.startswith("s3://") for p in (settings.gallery, settings.queries, settings.output))
    assert settings.ray_address is None, "Ray tells the driver where the cluster is"
    submitted = re.findall(
        r"^ray job submit .* -- +(.+)$", README.replace("\\\n", " "), re.MULTILINE
    )
    assert len(submitted) >= 3
    for command in submitted:
        parse_command(command.replace("python -m lookalike", "lookalike"))


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_pods_are_unprivileged_and_contain_no_secrets(manifest):
    head, *worker_templates = pod_templates(manifest)
    assert all(t["spec"]["automountServiceAccountToken"] is False for t in worker_templates)
    for template in (head, *worker_templates):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "env" not in container
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))


def test_clusters_require_a_token_and_expose_no_port():
    for manifest in MANIFESTS.values():
        assert cluster_spec(manifest)["authOptions"] == {"mode": "token"}
        assert cluster_spec(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "--env RAY_AUTH_MODE=token" in LAUNCHER["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(LAUNCHER["head_start_ray_commands"])
    all_files = "\n".join(path.read_text() for path in DEPLOY.iterdir())
    assert not re.search(r"RAY_AUTH_TOKEN=(?![$\s`])", all_files)


def test_dockerfile_passes_hadolint():
    command = ["hadolint", "--no-color", "-"]
    assert run_linter(command, DOCKERFILE) == ""
    assert "DL3002" in run_linter(command, DOCKERFILE.replace("USER 1000:1000", "USER root"))
    assert "://" not in DOCKERFILE, "nothing is fetched from a URL"


def test_docker_context_equals_copied_files():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sources = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {source for line in sources for source in line.split()}
    assert copied == {line[1:] for line in ignore if line.startswith("!")}
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


def test_versions_agree_with_pyproject_and_constraints():
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    assert CONSTRAINTS.keys() == {requirement.name for requirement in requirements}
    for requirement in requirements:
        assert Version(CONSTRAINTS[requirement.name]) in requirement.specifier
    image = f"{PROJECT['name']}:{PROJECT['version']}"
    for manifest in MANIFESTS.values():
        assert cluster_spec(manifest)["rayVersion"] == CONSTRAINTS["ray"]
        containers = [c for t in pod_templates(manifest) for c in t["spec"]["containers"]]
        assert {container["image"] for container in containers} == {image}
    assert LAUNCHER["docker"]["image"].endswith(f"/{image}")


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_yaml_passes_yamllint(path):
    assert [str(problem) for problem in linter.run(path.read_text(), YamlLintConfig(_YAML))] == []


SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("script", [*COMMANDS, *SHELL], ids=lambda text: text[:30])
def test_shell_commands_pass_shellcheck(script):
    command = ["shellcheck", "--shell=bash", "--color=never", "--exclude=SC2016", "-"]
    assert run_linter(command, script) == ""
