"""What lies in deploy/, as values, and the tools of others that judge it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from yamllint import linter
from yamllint.config import YamlLintConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
README = (DEPLOY / "README.md").read_text()
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
RAYCLUSTER = yaml.safe_load((DEPLOY / "raycluster.yaml").read_text())
LAUNCHER = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
MANIFESTS = {"rayjob": RAYJOB, "raycluster": RAYCLUSTER}

_SCHEMA = json.loads(Path(__file__).with_name("deploy_schema.json").read_text())
_KUBERNETES = "1.33"
_YAML = YamlLintConfig(
    "{extends: default, rules: {line-length: {max: 100}, document-start: disable}}"
)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give the spec of the Ray cluster that a manifest makes."""
    spec = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give its groups of workers by name."""
    return {group["groupName"]: group for group in cluster_of(manifest)["workerGroupSpecs"]}


def templates_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give its pod templates: submitter, head, and one a group of workers."""
    found = {"head": cluster_of(manifest)["headGroupSpec"]["template"]}
    found |= {name: group["template"] for name, group in groups_of(manifest).items()}
    if "submitterPodTemplate" in manifest["spec"]:
        found["submitter"] = manifest["spec"]["submitterPodTemplate"]
    return found


def check_manifest(manifest: dict[str, Any]) -> None:
    """Refuse what neither Kubernetes nor KubeRay knows."""
    jsonschema.validate(manifest, _SCHEMA)
    templates = list(templates_of(manifest).values())
    # the container that KubeRay puts beside the head is made of these
    options = cluster_of(manifest).get("autoscalerOptions", {})
    fields = {key: options[key] for key in options.keys() & {"securityContext", "resources"}}
    beside = {"name": "autoscaler", "image": "ray", **fields}
    for template in [*templates, {"spec": {"containers": [beside]}}]:
        wrapped = {
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"},
            "template": template,
        }  # fmt: skip
        kubernetes_validate.validate(wrapped, _KUBERNETES, strict=True)


def autoscaled(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give the types of nodes that Ray's own autoscaler makes of a manifest."""
    named = {"name": "any", "namespace": "any"}
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": named, "spec": cluster_of(manifest)}
    )
    return config["available_node_types"]


def launched(config: dict[str, Any]) -> dict[str, Any]:
    """Give what `ray up` makes of a launcher file; refuses what Ray does not know."""
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def hadolint(dockerfile: str) -> str:
    """Give what hadolint finds in a Dockerfile: nothing, if it is well."""
    return _told(["hadolint", "--no-color", "-"], dockerfile)


def shellcheck(script: str) -> str:
    """Give what shellcheck finds in a script.

    That nothing is put into single quotes (SC2016) is meant: Ray puts it there.
    """
    return _told(["shellcheck", "--shell=bash", "--color=never", "--exclude=SC2016", "-"], script)


def yamllint(text: str) -> list[str]:
    """Give what yamllint finds in a YAML file, warnings included."""
    return [str(problem) for problem in linter.run(text, _YAML)]


def shell_of(markdown: str) -> list[str]:
    """Give the shell blocks of a page."""
    return re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def _told(command: list[str], given: str) -> str:
    program = Path(sys.executable).with_name(command[0])
    ended = subprocess.run(
        [program, *command[1:]], input=given, capture_output=True, text=True, check=False
    )
    assert (ended.returncode == 0) == (ended.stdout == ""), ended.stderr
    return ended.stdout
