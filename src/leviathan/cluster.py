"""Owns Kubernetes manifests: a Job, a JobSet or a PyTorchJob that trains a run.

Made as data and dumped. Nothing passes through a shell: ``leviathan`` is the container's first
process and gets the signals. Does not call Kubernetes.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from leviathan import labels, yamlfile
from leviathan.errors import BadInput
from leviathan.export import Carried, Export

Kind = Literal["job", "jobset", "pytorchjob"]
HOME = "/workspace"
_WORK = f"{HOME}/work"
_PORT = 29400
_USER = 1000
_RETRIES = 6
_RESTARTS = 20
"""Of a JobSet, which cannot tell a host that was taken away from one that failed."""
_COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# etcd's limit for an object is 1.5 MiB, Kubernetes' for a ConfigMap 1 MiB; some is for the rest.
_CONFIG_BYTES = 900_000

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What of the manifests is not the run's."""

    kind: Kind = "job"
    image: str = "leviathan-train:latest"
    work_gib: int = 100
    """Volume that holds runs, checkpoints and downloaded models."""
    storage_class: str | None = None
    shm_gib: int = 16


def kind_of(name: str) -> Kind:
    """``name`` as a kind.

    Raises:
        BadInput: it is none.
    """
    for kind in get_args(Kind):
        if kind == name:
            return kind  # type: ignore[no-any-return]
    raise BadInput(f"--kind {name!r} is not one", f"choose of {', '.join(get_args(Kind))}")


def text(manifests: list[Manifest]) -> str:
    """Objects as one YAML file, in their order."""
    return "---\n".join(map(yamlfile.dump_blocks, manifests))


def volumes(export: Export, wish: Wish) -> list[Manifest]:
    """ConfigMap and volume claims: what has to be there, and filled, before the job.

    Raises:
        BadInput: names no mount can have, configs too large for a ConfigMap.
    """
    _refuse_unmountable(export)
    pod = _Pods(export, wish)
    return [pod.config_map(), *pod.claims()]


def job(export: Export, wish: Wish) -> Manifest:
    """The job itself.

    Raises:
        BadInput: several hosts in a Job, or one in a JobSet.
    """
    if (wish.kind == "job") != (export.nodes == 1):
        raise BadInput(
            f"--kind {wish.kind} is not for {export.nodes} host{'s' * (export.nodes > 1)}",
            "a job is one host; several are a jobset or a pytorchjob, with --nodes",
        )
    jobs = {"job": _job, "jobset": _jobset, "pytorchjob": _pytorchjob}
    return jobs[wish.kind](_Pods(export, wish))


def loader(export: Export, wish: Wish) -> Manifest:
    """A Pod that only holds the data's volume, for ``kubectl cp``."""
    pod = _Pods(export, wish)
    mounts = [{"name": "data", "mountPath": "/data"}]
    container = {
        "name": "loader", "image": wish.image, "command": ["sleep", "86400"],
        "volumeMounts": mounts, "securityContext": _CONTAINER_SECURITY,
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": pod.metadata("-loader"),
        "spec": {
            "restartPolicy": "Never",
            "securityContext": _POD_SECURITY,
            "containers": [container],
            "volumes": [_claimed("data", f"{pod.name}-data")],
        },
    }


def literal(word: str) -> str:
    """``word`` as an argument that Kubernetes leaves as it is: it expands ``$(NAME)`` itself."""
    return word.replace("$", "$$")


def _refuse_unmountable(export: Export) -> None:
    # Below Kubernetes' own rules: a mount's path has no colon, a subPath no '..'.
    for name in [*export.texts, *(one.name for one in export.carried)]:
        if ":" in name or re.search(r"[\x00-\x1f]", name):
            raise BadInput(f"{name!r} cannot be mounted in a container", "rename that file")
    size = sum(map(len, export.texts.values()))
    if size > _CONFIG_BYTES:
        raise BadInput(f"{size} bytes of configs do not fit a ConfigMap", "make the suite smaller")


_POD_SECURITY: Manifest = {
    "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
_CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


def _claimed(name: str, claim: str) -> Manifest:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


class _Pods:
    """What the manifests of one export share."""

    def __init__(self, export: Export, wish: Wish) -> None:
        self.export, self.wish = export, wish
        self.name = labels.label(export.run)

    def metadata(self, suffix: str = "") -> Manifest:
        return {
            "name": f"{self.name}{suffix}",
            "labels": {
                "app.kubernetes.io/name": "leviathan",
                "app.kubernetes.io/instance": self.name,
                "app.kubernetes.io/managed-by": "leviathan",
            },
            "annotations": {"leviathan/run": self.export.run},
        }

    def config_map(self) -> Manifest:
        data = {key: text.decode() for key, text in self._config_keys().items()}
        return {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata("-configs"),
            "data": data,
        }  # fmt: skip

    def _config_keys(self) -> dict[str, bytes]:
        """Keys of a ConfigMap have no slashes; the mounts give the files their places."""
        return {f"file-{n}": text for n, text in enumerate(self.export.texts.values())}

    def claims(self) -> list[Manifest]:
        """One volume for what training writes, one for what it reads."""
        several = self.export.nodes > 1
        data_gib = -(-sum(one.bytes for one in self.export.carried) * 5 // (4 << 30)) or 1
        return [
            self._claim("-work", "ReadWriteMany" if several else "ReadWriteOnce",
                        self.wish.work_gib),
            self._claim("-data", "ReadWriteMany" if several else "ReadWriteOnce", data_gib),
        ]  # fmt: skip

    def _claim(self, suffix: str, mode: str, gib: int) -> Manifest:
        spec: Manifest = {
            "accessModes": [mode],
            "resources": {"requests": {"storage": f"{gib}Gi"}},
        }
        if self.wish.storage_class:
            spec["storageClassName"] = self.wish.storage_class
        return {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": self.metadata(suffix), "spec": spec,
        }  # fmt: skip

    def template(
        self,
        more: tuple[str, ...] = (),
        env: tuple[Manifest, ...] = (),
        *,
        container: str = "train",
    ) -> Manifest:
        """A pod's template; ``more`` words are Kubernetes' to expand, the run's are not."""
        return {
            "metadata": {"labels": self.metadata()["labels"]},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": self.export.grace_s,
                "securityContext": _POD_SECURITY,
                "initContainers": [self._layout()],
                "containers": [self._trainer(container, more, env)],
                "volumes": self._volumes(),
            },
        }

    def _layout(self) -> Manifest:
        """Folders that mounts lie in, made by the user who trains; a mount makes root's."""
        places = sorted({f"{_WORK}/data", f"{_WORK}/home"})
        return {
            "name": "layout", "image": self.wish.image, "command": ["mkdir", "-p", *places],
            "volumeMounts": [{"name": "work", "mountPath": _WORK}],
            "securityContext": _CONTAINER_SECURITY,
        }  # fmt: skip

    def _trainer(self, name: str, more: tuple[str, ...], env: tuple[Manifest, ...]) -> Manifest:
        words = self.export.command
        gpus = self.export.gpus
        resources = {"resources": {"limits": {"nvidia.com/gpu": gpus}}} if gpus else {}
        return {
            "name": name,
            "image": self.wish.image,
            "command": [words[0]],
            "args": [*map(literal, words[1:]), *more],
            "workingDir": HOME,
            "env": [*self._environment(), *env],
            **resources,
            "securityContext": _CONTAINER_SECURITY,
            "volumeMounts": self._mounts(),
        }

    def _environment(self) -> list[Manifest]:
        plain = {"AXOLOTL_DO_NOT_TRACK": "1", "HOME": f"{_WORK}/home",
                 "HF_HOME": f"{_WORK}/huggingface"}  # fmt: skip
        return [
            *({"name": name, "value": value} for name, value in plain.items()),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {
                    "name": f"{self.name}-secrets", "key": name, "optional": True}}}
                for name in self.export.secrets
            ),
        ]  # fmt: skip

    def _mounts(self) -> list[Manifest]:
        mounts: list[Manifest] = [
            {"name": "work", "mountPath": _WORK},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - where NCCL and loaders share
        ]
        mounts += [
            {"name": "configs", "mountPath": f"{HOME}/{place}", "subPath": f"file-{number}",
             "readOnly": True}
            for number, place in enumerate(self.export.texts)
        ]  # fmt: skip
        mounts += [
            {"name": "data", "mountPath": f"{HOME}/{place}", "subPath": place, "readOnly": True}
            for place in _roots(self.export.carried)
        ]
        return mounts

    def _volumes(self) -> list[Manifest]:
        memory = {"medium": "Memory", "sizeLimit": f"{self.wish.shm_gib}Gi"}
        return [
            _claimed("work", f"{self.name}-work"),
            _claimed("data", f"{self.name}-data"),
            {"name": "configs", "configMap": {"name": f"{self.name}-configs"}},
            {"name": "shm", "emptyDir": memory},
        ]


def _roots(carried: tuple[Carried, ...]) -> list[str]:
    """What to mount: the sample's file, the base model's directory."""
    found = []
    for one in carried:
        folder, _, _ = one.name.partition("/")
        # Of work/ only the file: the rest of it is the other volume's.
        found.append(one.name if folder == "work" else folder)
    return sorted(set(found))


def _exits(action: str, *codes: int) -> Manifest:
    of = {"containerName": "train", "operator": "In", "values": list(codes)}
    return {"action": action, "onExitCodes": of}


def _job(pod: _Pods) -> Manifest:
    """Exit codes: docs/cloud.md. A pod taken from its node is no failure of training."""
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    rules = [
        {"action": "Ignore", "onPodConditions": [disrupted]},
        _exits("FailJob", 2, 3),
        _exits("Count", 4),
    ]
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": pod.metadata(),
        "spec": {"backoffLimit": _RETRIES, "podFailurePolicy": {"rules": rules},
                 "template": pod.template()},
    }  # fmt: skip


def _jobset(pod: _Pods) -> Manifest:
    """Hosts meet at the first pod's name in the JobSet's own headless service."""
    nodes = pod.export.nodes
    head = f"{pod.name}-host-0-0.{pod.name}"
    rank = {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _COMPLETION_INDEX}}}
    template = pod.template(
        ("--nodes", str(nodes), "--rdzv", f"{head}:{_PORT}", "--node-rank", "$(NODE_RANK)"),
        (rank,),
    )
    # One host that fails, or is taken away, ends the others: all begin again from the newest
    # checkpoint. A pod that is replaced alone would wait for a training that waits for it.
    spec = {
        "completionMode": "Indexed", "completions": nodes, "parallelism": nodes,
        "backoffLimit": 0, "podFailurePolicy": {"rules": [_exits("FailJob", 2, 3)]},
        "template": template,
    }  # fmt: skip
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": pod.metadata(),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": pod.name},
            "failurePolicy": {
                "maxRestarts": _RESTARTS,
                "rules": [
                    {
                        "name": "not-to-be-retried",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "host", "replicas": 1, "template": {"spec": spec}}],
        },
    }


def _pytorchjob(pod: _Pods) -> Manifest:
    """The operator gives every pod its RANK, and the first one a service of its own name.

    Its restart policy ExitCode calls 1 to 127 final, our 4 among them: hence OnFailure.
    """
    nodes = pod.export.nodes
    words = ("--nodes", str(nodes), "--rdzv", f"{pod.name}-master-0:{_PORT}",
             "--node-rank", "$(RANK)")  # fmt: skip
    template = pod.template(words, container="pytorch")  # the operator looks for this name
    del template["spec"]["restartPolicy"]

    def replicas(count: int) -> Manifest:
        return {"replicas": count, "restartPolicy": "OnFailure", "template": template}

    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": pod.metadata(),
        "spec": {
            "runPolicy": {"backoffLimit": _RETRIES, "cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {"Master": replicas(1), "Worker": replicas(nodes - 1)},
        },
    }


def dockerfile(export: Export, wheel: str) -> str:
    """An image with what this run was trained with; ``wheel`` is a file of the bundle."""
    python = ".".join(export.versions.get("python", "3.11").split(".")[:2])
    copied = json.dumps(["requirements.txt", "torch.txt", wheel, "/opt/bundle/"])
    return f"""\
# docker build -t IMAGE . (in this directory); then push it where the cluster finds it.
# flash-attn, where it is wanted, needs a base with CUDA's compiler: --build-arg BASE=...
ARG BASE=python:{python}-slim
FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git \\
    && rm -rf /var/lib/apt/lists/*
COPY {copied}
RUN python3 -m pip install --no-cache-dir -r /opt/bundle/torch.txt \\
    && python3 -m pip install --no-cache-dir -r /opt/bundle/requirements.txt \\
        {json.dumps(f"/opt/bundle/{wheel}")}
USER {_USER}:{_USER}
WORKDIR {HOME}
ENTRYPOINT ["leviathan"]
"""
