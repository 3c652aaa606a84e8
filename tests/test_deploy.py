"""The deploy room: what it says is what the command line takes and what was tested."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from jobs import options, parsing
from jobs.cli import command_line
from jobs.settings import RunSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
SPEC = RAYJOB["spec"]
CLUSTER = SPEC["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
WORKERS = CLUSTER["workerGroupSpecs"]
PODS = {
    "submitter": SPEC["submitterPodTemplate"]["spec"],
    "head": HEAD["template"]["spec"],
    **{group["groupName"]: group["template"]["spec"] for group in WORKERS},
}
CONTAINERS = [container for pod in PODS.values() for container in pod["containers"]]

_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


def in_bytes(quantity):
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def in_cpus(quantity):
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def instructions():
    """Dockerfile as (WORD, rest), comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def rest_of(word):
    return [rest for found, rest in instructions() if found == word]


def versions():
    return dict(line.split("==") for line in CONSTRAINTS.splitlines())


def refuse_unknown(command):
    """Parse a command as the command line does, without starting it."""
    program, verb, *arguments = shlex.split(command)
    assert program in PROJECT["scripts"]
    group = command_line()
    with group.make_context(program, [verb, *arguments]) as context:
        parsed = group.get_command(context, verb).make_context(verb, arguments, parent=context)
    settings = RunSettings(**parsed.params)
    options.check(settings)
    assert parsed.params.keys() <= options.OPTIONS.keys()
    return settings


# the job


def test_rayjob_is_one_rayjob_of_the_stable_api():
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    assert RAYJOB["metadata"]["name"] == PROJECT["name"]


def test_entrypoint_is_a_command_that_the_command_line_takes():
    settings = refuse_unknown(SPEC["entrypoint"])
    assert settings.json
    folders = (settings.gallery, settings.queries, settings.output)
    assert all(folder.startswith("s3://") for folder in folders)
    assert settings.ray_address is None, "Ray tells the driver where it is"


def test_readme_submits_the_same_command():
    readme = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    submitted = re.search(r"^ray job submit --address \S+ -- (.+)$", readme, re.MULTILINE)
    assert submitted
    assert shlex.split(submitted[1]) == shlex.split(SPEC["entrypoint"])


def test_retries_and_shutdown():
    assert SPEC["backoffLimit"] >= 1
    assert SPEC["shutdownAfterJobFinishes"] is True
    assert CLUSTER["authOptions"] == {"mode": "token"}


def test_no_work_runs_on_the_head():
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_ray_start_takes_only_texts():
    groups = [HEAD, *WORKERS]
    assert all(isinstance(v, str) for group in groups for v in group["rayStartParams"].values())


@pytest.mark.parametrize("group", WORKERS, ids=lambda group: group["groupName"])
def test_a_worker_holds_what_its_tasks_may(group):
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    at_once = in_cpus(limits["cpu"]) * parsing.parse_size(
        options.OPTIONS["max_index_memory"].default
    )
    assert at_once <= 0.7 * in_bytes(limits["memory"])  # Ray's object store has the other 30 %


@pytest.mark.parametrize("name", PODS)
def test_pods_are_not_root_and_may_not_become_it(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", PODS)
def test_pods_say_what_they_need_and_may_have(name):
    for container in PODS[name]["containers"]:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert 0 < in_cpus(requests["cpu"]) <= in_cpus(limits["cpu"])
        assert 0 < in_bytes(requests["memory"]) <= in_bytes(limits["memory"])


def test_secrets_are_only_named():
    for container in CONTAINERS:
        assert "env" not in container
        assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))
    assert all("envFrom" in c for c in CONTAINERS if c["name"] != "ray-job-submitter")


def test_versions_agree():
    assert CLUSTER["rayVersion"] == versions()["ray"]
    image = f"{PROJECT['name']}:{PROJECT['version']}"
    assert {container["image"] for container in CONTAINERS} == {image}
    assert f"--tag {image} ." in (DEPLOY / "README.md").read_text()


# the image


def test_base_image_is_pinned():
    (base,) = (rest for rest in rest_of("ARG") if rest.startswith("BASE="))
    assert rest_of("FROM") == ["${BASE}"]
    python = re.fullmatch(r"BASE=python:(3\.\d+)-slim-[a-z]+", base)
    assert python
    assert Version(python[1]) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert "latest" not in DOCKERFILE


def test_image_does_not_run_as_root():
    users = rest_of("USER")
    contexts = [pod["securityContext"] for pod in PODS.values()]
    pods = {(context["runAsUser"], context["runAsGroup"]) for context in contexts}
    assert pods == {tuple(int(part) for part in users[-1].split(":"))}
    last = max(number for number, (word, _) in enumerate(instructions()) if word == "RUN")
    assert instructions().index(("USER", users[-1])) > last


def test_image_fetches_nothing_by_url_and_holds_no_secret():
    assert not rest_of("ADD")
    assert "://" not in DOCKERFILE
    assert not re.search(
        r"(?i)(password|passwd|secret|token|api_?key|credential)\w*\s*=", DOCKERFILE
    )


def test_image_installs_the_tested_versions_and_keeps_no_cache():
    commands = [part.strip() for rest in rest_of("RUN") for part in rest.split("&&")]
    installs = [command for command in commands if command.startswith("pip install")]
    assert installs
    assert all("constraints.txt" in command and "--no-cache-dir" in command for command in installs)


def test_image_starts_the_console_script():
    assert rest_of("CMD") == ['["lookalike", "--help"]']
    assert not rest_of("ENTRYPOINT")
    assert shlex.split(SPEC["entrypoint"])[0] == "lookalike"
    assert PROJECT["scripts"].keys() == {"lookalike"}


def test_image_knows_the_extras():
    (extras,) = (rest for rest in rest_of("ARG") if rest.startswith("EXTRAS="))
    assert extras.removeprefix("EXTRAS=") in PROJECT["optional-dependencies"]


def test_context_is_exactly_what_is_copied():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in ignore if not line.startswith("#")]
    assert patterns[0] == "*"
    copied = {source for rest in rest_of("COPY") for source in rest.split()[:-1]}
    assert copied == {line[1:] for line in patterns if line.startswith("!")}
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


# the versions


def test_constraints_are_names_and_versions_of_the_direct_dependencies():
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*==\d+(\.\d+)+", s) for s in CONSTRAINTS.splitlines())
    assert versions().keys() == {Requirement(text).name for text in PROJECT["dependencies"]}


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_constraints_satisfy_the_lower_bounds(text):
    requirement = Requirement(text)
    assert Version(versions()[requirement.name]) in requirement.specifier


# the files as such


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_lines_fit_and_readme_names_every_file(path):
    assert all(len(line) <= 100 for line in path.read_text().splitlines())
    assert path.name == "README.md" or f"]({path.name})" in (DEPLOY / "README.md").read_text()
