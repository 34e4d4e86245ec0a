"""What must hold of the files in ``deploy/``, as functions: each names what is wrong with a text.

The tests ask them about the files, and about the same files with one protection taken away.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml

from wardround_common import cli

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
PROGRAMS: Final = ("wardround", "/opt/wardround/bin/wardround")
DATA: Final = "/srv/patients"
SOCKET_FOLDER: Final = "/run/wardround"
WORKER_STATE: Final = "/var/lib/wardround-worker"

Settings = dict[str, list[str]]


def unaccepted(words: Sequence[str]) -> str | None:
    """What is wrong with the words behind ``wardround``, or None: no command is run."""
    command: click.Command = cli.wardround
    context, rest = click.Context(command, info_name="wardround"), list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest else ""
        if any(name in option.opts for option in command.get_params(context)):
            return None  # --version, --help: they end the command line
        found = command.get_command(context, name)
        if found is None:
            return f"no such verb: {name!r}"
        command = found
    try:
        command.make_context(command.name, rest)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


def shell_commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words behind each ``wardround`` of shell lines, up to what ends a simple command."""
    for line in lines:
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words if words[:1] != ["ln"] else ()):
            if word in PROGRAMS and (place == 0 or words[place - 1] not in {"-n", "cd"}):
                behind = words[place + 1 :]
                ends = [at for at, each in enumerate(behind) if each in {"|", "||", "&&", ";", ">"}]
                yield behind[: min(ends, default=len(behind))]


def unit_settings(text: str) -> Settings:
    """Setting -> its values, in order, of a systemd unit."""
    found: Settings = {}
    for key, value in re.findall(r"^([A-Z]\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value.strip())
    return found


_EVERY_UNIT: Final = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "PrivateTmp": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
}
_EACH_UNIT: Final[Mapping[str, Mapping[str, str]]] = {
    "worker": {
        "PrivateNetwork": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
        "CapabilityBoundingSet": "",
        "User": "wardround-worker",
    },
    "node": {
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "CapabilityBoundingSet": "",
        "PrivateDevices": "yes",
        "User": "wardround-node",
        "Group": "wardround-node",
        "SupplementaryGroups": "wardround-airlock",
    },
    "aggregator": {
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "CapabilityBoundingSet": "CAP_NET_BIND_SERVICE",
        "PrivateDevices": "yes",
        "User": "wardround-aggregator",
    },
}


def unit_problems(text: str, role: str) -> list[str]:
    """Settings of a unit that are not what its role needs, by name."""
    settings = unit_settings(text)
    wanted = {**_EVERY_UNIT, **_EACH_UNIT[role]}
    problems = [key for key, value in wanted.items() if settings.get(key) != [value]]
    filters = settings.get("SystemCallFilter", [])
    if not filters or not filters[0].startswith("@system-service"):
        problems.append("SystemCallFilter")
    hidden = " ".join(settings.get("InaccessiblePaths", [])).split()
    if role == "node" and not {f"-{WORKER_STATE}", f"-{DATA}"} <= set(hidden):
        problems.append("InaccessiblePaths")
    return problems


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    return [each for each in yaml.safe_load_all(text) if each]


def compose_problems(text: str) -> list[str]:
    """What a Compose file lets a service have that it must not, as ``service: what``."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    problems = [
        f"{name}: {what}" for name, service in services.items() for what in _too_much(service)
    ]
    if "worker" in services:
        problems += [f"worker: {what}" for what in _worker_problems(services["worker"])]
    if "node" in services:
        problems += [f"node: {what}" for what in _node_problems(services["node"])]
        problems += [f"both: {what}" for what in _in_common(services["worker"], services["node"])]
    return problems


def _too_much(service: Mapping[str, Any]) -> Iterator[str]:
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    security = service.get("security_opt", [])
    wrong = {
        "writable root": service.get("read_only") is not True,
        "capabilities": service.get("cap_drop") != ["ALL"] or bool(service.get("cap_add")),
        "privileged": bool(service.get("privileged")) or bool(service.get("devices")),
        "new privileges": "no-new-privileges:true" not in security,
        "unconfined": any("unconfined" in each for each in security),
        "root": str(service.get("user", "0")).split(":")[0] in {"0", "root", ""},
        "host's namespaces": any(
            str(service.get(key, "")).startswith(("host", "container", "service"))
            for key in ("network_mode", "pid", "ipc", "userns_mode", "uts", "cgroup")
        ),
        "no limits": not {"cpus", "memory", "pids"} <= set(limits),
        "no health check": "test" not in service.get("healthcheck", {}),
        "engine's socket": any("docker.sock" in str(each) for each in service.get("volumes", [])),
        "image": re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+", service.get("image", "")) is None,
    }
    return (what for what, is_wrong in wrong.items() if is_wrong)


def _worker_problems(service: Mapping[str, Any]) -> Iterator[str]:
    if service.get("network_mode") != "none" or "networks" in service:
        yield "network"
    if "ports" in service or "expose" in service:
        yield "ports"
    data = [each for each in service["volumes"] if each["target"] == DATA]
    if [each.get("read_only") for each in data] != [True]:
        yield "writable data"


def _node_problems(service: Mapping[str, Any]) -> Iterator[str]:
    mounts = service["volumes"]
    if any("PATIENTS" in each["source"] or each["target"].startswith(DATA) for each in mounts):
        yield "data"
    if any(each["target"] == SOCKET_FOLDER and not each.get("read_only") for each in mounts):
        yield "writable socket folder"
    if "ports" in service:
        yield "ports"


def _in_common(worker: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[str]:
    if worker["user"].split(":")[0] == node["user"].split(":")[0]:
        yield "same user"
    if worker["user"].split(":")[1:] != [str(each) for each in node.get("group_add", [])]:
        yield "groups"
    shared = {each["source"] for each in worker["volumes"]}
    if shared & {each["source"] for each in node["volumes"]} != {"airlock"}:
        yield "volumes"


def compose_commands(text: str) -> Iterator[list[str]]:
    """The words behind ``wardround`` of every command and health check of a Compose file."""
    for service in yaml.safe_load(text)["services"].values():
        if "command" in service:
            yield service["command"]
        kind, *words = service.get("healthcheck", {}).get("test", [""])
        yield from shell_commands(words if kind == "CMD-SHELL" else [shlex.join(words)])


def merged(base: Any, over: Any) -> Any:
    """Two Compose files as Compose reads them together: mappings by key, lists one behind the other."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merged(base.get(key), value) for key, value in over.items()}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over


_ALONE: Final = ["/usr/bin/unshare", "--user", "--net", "--map-current-user", "--"]
"""What leaves a pod's network: no capability is needed, and nothing is left to go back with."""


def pod_problems(text: str) -> list[str]:
    """What the manifests of a site let a container have that it must not, as ``container: what``."""
    found = documents(text)
    pods = [each["spec"]["template"]["spec"] for each in found if each["kind"] == "Deployment"]
    problems = [f"pod: {what}" for pod in pods for what in _pod_wide(pod)]
    for pod in pods:
        containers = {each["name"]: each for each in pod["containers"]}
        problems += [f"{name}: {what}" for name in containers for what in _held(containers[name])]
        problems += [f"worker: {what}" for what in _not_alone(containers["worker"])]
        problems += [f"node: {what}" for what in _sees_data(containers, pod["volumes"])]
    policies = [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]
    return problems + [f"network: {what}" for what in _reachable(policies)]


def _pod_wide(pod: Mapping[str, Any]) -> Iterator[str]:
    shares = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
    yield from (key for key in shares if pod.get(key) is not False)
    if pod.get("automountServiceAccountToken") is not False:
        yield "service account"
    if pod["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp"
    yield from ("host path" for each in pod["volumes"] if "hostPath" in each)


def _held(container: Mapping[str, Any]) -> Iterator[str]:
    own = container["securityContext"]
    if own.get("readOnlyRootFilesystem") is not True:
        yield "writable root"
    if own.get("capabilities") != {"drop": ["ALL"]} or own.get("privileged") is not False:
        yield "capabilities"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "new privileges"
    if not own.get("runAsUser") or own.get("runAsNonRoot") is not True:
        yield "root"
    if not {"cpu", "memory"} <= set(container["resources"].get("limits", {})):
        yield "no limits"


def _not_alone(worker: Mapping[str, Any]) -> Iterator[str]:
    probe = worker["readinessProbe"]["exec"]["command"]
    if worker["command"] != [*_ALONE, "wardround"] or probe[: len(_ALONE)] != _ALONE:
        yield "network"
    if worker["securityContext"].get("seccompProfile", {}).get("type") != "Localhost":
        yield "seccomp"
    mounts = {each["mountPath"]: each for each in worker["volumeMounts"]}
    if mounts[DATA].get("readOnly") is not True:
        yield "writable data"


def _sees_data(
    containers: Mapping[str, Any], volumes: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    worker, node = containers["worker"], containers["node"]
    if worker["securityContext"]["runAsUser"] == node["securityContext"]["runAsUser"]:
        yield "same user"
    of_worker, of_node = (
        {each["name"]: each for each in container["volumeMounts"]} for container in (worker, node)
    )
    if set(of_worker) & set(of_node) != {"airlock"}:
        yield "volumes"
    if of_node["airlock"].get("readOnly") is not True:
        yield "writable socket folder"
    claims = [each.get("persistentVolumeClaim", {}).get("claimName") for each in volumes]
    if len(set(filter(None, claims))) != len(list(filter(None, claims))):
        yield "data"


def _reachable(policies: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(policies) != 1 or set(policies[0]["policyTypes"]) != {"Ingress", "Egress"}:
        yield "no policy"
        return
    if policies[0]["ingress"]:
        yield "ingress"
    for rule in policies[0]["egress"]:
        where = rule.get("to", [])
        if not where or not rule.get("ports"):
            yield "egress"
        if any(each.get("ipBlock", {}).get("cidr", "").endswith("/0") for each in where):
            yield "egress"


def pod_commands(text: str) -> Iterator[list[str]]:
    """The words behind ``wardround`` of every command and probe of the manifests."""
    for document in documents(text):
        pod = document["spec"].get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            yield from shell_commands([shlex.join(container["command"] + container["args"])])
            probe = container["readinessProbe"]["exec"]["command"]
            yield from shell_commands([probe[-1] if "sh" in probe else shlex.join(probe)])
