"""The deploy room: what it says is what the command line takes and what was tested."""

import re
import shlex
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from jobs import options, parsing
from jobs.cli import command_line
from jobs.settings import RunSettings
from tests.deployed import (
    DEPLOY,
    DOCKERFILE,
    LAUNCHER,
    MANIFESTS,
    RAYCLUSTER,
    RAYJOB,
    README,
    ROOT,
    cluster_of,
    groups_of,
    templates_of,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
IMAGE = f"{PROJECT['name']}:{PROJECT['version']}"
PODS = {
    f"{file}-{name}": template["spec"]
    for file, manifest in MANIFESTS.items()
    for name, template in templates_of(manifest).items()
}
CONTAINERS = [container for pod in PODS.values() for container in pod["containers"]]
GROUPS = [
    pytest.param(group, id=f"{file}-{name}")
    for file, manifest in MANIFESTS.items()
    for name, group in groups_of(manifest).items()
]
NODES = LAUNCHER["available_node_types"]
MANIFEST = pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())

_GPU = "nvidia.com/gpu"
_MEMORY = {"r6i.xlarge": 32 << 30, "g6e.xlarge": 32 << 30}  # as AWS publishes it
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


# clusters and jobs on Kubernetes


@MANIFEST
def test_manifests_are_of_the_stable_api(manifest):
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["metadata"]["name"] == PROJECT["name"]


def test_the_job_has_the_cluster_that_stays_for_itself():
    assert (RAYJOB["kind"], RAYCLUSTER["kind"]) == ("RayJob", "RayCluster")
    assert cluster_of(RAYJOB) == cluster_of(RAYCLUSTER)


def test_entrypoint_is_a_command_that_the_command_line_takes():
    settings = refuse_unknown(RAYJOB["spec"]["entrypoint"])
    assert settings.json
    folders = (settings.gallery, settings.queries, settings.output)
    assert all(folder.startswith("s3://") for folder in folders)
    assert settings.ray_address is None, "Ray tells the driver where it is"
    group = groups_of(RAYJOB)["cpu"]
    cpus = in_cpus(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert settings.workers == group["maxReplicas"] * cpus, "it may use all that may come"


def test_readme_submits_the_same_command():
    readme = README.replace("\\\n", " ")
    submitted = re.findall(r"^ray job submit .*-- (.+)$", readme, re.MULTILINE)
    words = [shlex.split(command) for command in submitted]
    ours = ["lookalike", "run"]
    start = {tuple(ours): ours, ("python", "-m"): ["python", "-m", "jobs.cli", "run"]}
    rest = [command[len(start[tuple(command[:2])]) :] for command in words]
    assert len(rest) >= 3
    assert all([*ours, *each] == shlex.split(RAYJOB["spec"]["entrypoint"]) for each in rest)


def test_retries_and_shutdown():
    assert RAYJOB["spec"]["backoffLimit"] >= 1
    assert RAYJOB["spec"]["shutdownAfterJobFinishes"] is True


@MANIFEST
def test_a_token_is_wanted_and_nothing_is_served_outside(manifest):
    assert cluster_of(manifest)["authOptions"] == {"mode": "token"}
    assert cluster_of(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"


@MANIFEST
def test_no_work_runs_on_the_head(manifest):
    assert cluster_of(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@MANIFEST
def test_it_grows_and_shrinks_and_some_cpus_are_always_there(manifest):
    assert cluster_of(manifest)["enableInTreeAutoscaling"] is True
    assert cluster_of(manifest)["autoscalerOptions"]["version"] == "v2"
    assert {t["spec"]["restartPolicy"] for t in templates_of(manifest).values()} == {"Never"}
    groups = groups_of(manifest)
    assert groups["cpu"]["minReplicas"] >= 1, "without a CPU and --workers a job refuses"
    assert groups["gpu"]["minReplicas"] == 0


@pytest.mark.parametrize("group", GROUPS)
def test_a_worker_holds_what_its_tasks_may(group):
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert held_by(in_cpus(limits["cpu"])) <= in_bytes(limits["memory"])


def held_by(cpus):
    """Give the memory that a node of so many CPUs needs."""
    tasks = cpus * parsing.parse_size(options.OPTIONS["max_index_memory"].default)
    return tasks / 0.7  # Ray's object store has the other 30 %


@pytest.mark.parametrize("group", GROUPS)
def test_a_gpu_is_one_devices_plugin_counts_and_only_its_group_has_one(group):
    resources = group["template"]["spec"]["containers"][0]["resources"]
    asked = {resources[side].get(_GPU, "0") for side in ("requests", "limits")}
    assert asked == {"1" if group["groupName"] == "gpu" else "0"}


@pytest.mark.parametrize("name", PODS)
def test_workers_may_lie_on_spot_nodes_and_nothing_else_may(name):
    tolerated = {toleration["key"] for toleration in PODS[name].get("tolerations", [])}
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    kind = name.split("-")[1]
    assert tolerated == {"cpu": spot, "gpu": spot | {_GPU}}.get(kind, set())


@pytest.mark.parametrize("name", PODS)
def test_only_the_head_may_ask_kubernetes_for_pods(name):
    assert PODS[name].get("automountServiceAccountToken", True) is name.endswith("head")


@pytest.mark.parametrize("name", PODS)
def test_pods_are_not_root_and_may_not_become_it(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@MANIFEST
def test_the_autoscaler_may_no_more_than_the_others(manifest):
    beside = cluster_of(manifest)["autoscalerOptions"]["securityContext"]
    assert {str(container["securityContext"]) for container in CONTAINERS} == {str(beside)}


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


@MANIFEST
def test_versions_agree(manifest):
    assert cluster_of(manifest)["rayVersion"] == versions()["ray"]
    assert {container["image"] for container in CONTAINERS} == {IMAGE}
    assert LAUNCHER["docker"]["image"].endswith(f"/{IMAGE}")
    assert f"--tag {IMAGE} ." in README


# the launcher


def test_the_launcher_has_the_same_three_kinds_of_nodes():
    groups = groups_of(RAYCLUSTER)
    assert NODES.keys() == {"head", *groups}
    assert LAUNCHER["max_workers"] == sum(group["maxReplicas"] for group in groups.values())
    for name, group in groups.items():
        most = (NODES[name]["min_workers"], NODES[name]["max_workers"])
        assert most == (group["minReplicas"], group["maxReplicas"])


def test_no_work_runs_on_the_launched_head_and_its_dashboard_stays_there():
    assert NODES["head"]["resources"] == {"CPU": 0}
    start = " ".join(LAUNCHER["head_start_ray_commands"])
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start


def test_launched_workers_hold_what_their_tasks_may_and_are_spot_nodes():
    for name in ("cpu", "gpu"):
        config = NODES[name]["node_config"]
        assert held_by(NODES[name]["resources"]["CPU"]) <= _MEMORY[config["InstanceType"]]
        assert config["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in NODES["head"]["node_config"]


def test_the_token_is_wanted_there_too_and_lies_in_no_file_of_ours():
    assert "--env RAY_AUTH_MODE=token" in LAUNCHER["docker"]["run_options"]
    assert LAUNCHER["file_mounts"] == {"/home/lookalike/.ray": "~/.ray"}
    assert "HOME=/home/lookalike" in " ".join(rest_of("ENV"))
    everywhere = "\n".join(path.read_text() for path in DEPLOY.iterdir())
    assert not re.search(r"RAY_AUTH_TOKEN=(?![$\s`])", everywhere)


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
    assert "TORCH_INDEX=" in rest_of("ARG"), "which index is the builder's affair"
    assert "://" not in DOCKERFILE
    assert not re.search(
        r"(?i)(password|passwd|secret|token|api_?key|credential)\w*\s*=", DOCKERFILE
    )


def test_image_installs_the_tested_versions_and_keeps_no_cache():
    commands = [part.strip() for rest in rest_of("RUN") for part in re.split(r"&&|\|\|", rest)]
    installs = [command for command in commands if command.startswith("pip install")]
    assert len(installs) == 3
    assert all("constraints.txt" in command and "--no-cache-dir" in command for command in installs)


def test_image_starts_the_console_script():
    assert rest_of("CMD") == ['["lookalike", "--help"]']
    assert not rest_of("ENTRYPOINT")
    assert shlex.split(RAYJOB["spec"]["entrypoint"])[0] == "lookalike"
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
    assert path.name == "README.md" or f"]({path.name})" in README
