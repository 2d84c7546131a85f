"""Owns what a bundle for each kind of machine holds, and the README that says what to type.

Does not find what is exported (``export``) nor write it (``bundle``).
"""

import shlex
from dataclasses import dataclass, field
from typing import Literal, get_args

from leviathan import bundle, cluster, labels, scripts, skypilot, wheelhouse
from leviathan.bundle import Bundle
from leviathan.errors import BadInput
from leviathan.export import Carried, Export

Target = Literal["skypilot", "k8s", "ssh"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Wishes:
    """What was asked for beside the run, by target."""

    include_data: bool = False
    task: skypilot.Wish = field(default_factory=skypilot.Wish)
    manifests: cluster.Wish = field(default_factory=cluster.Wish)
    host: scripts.Host = field(default_factory=scripts.Host)


def build(target: str, export: Export, wishes: Wishes) -> Bundle:
    """The bundle for a target, in memory.

    Raises:
        BadInput: an unknown target, or what it cannot do (see ``skypilot``, ``cluster``).
    """
    makers = {"skypilot": _skypilot, "k8s": _cluster, "ssh": _ssh}
    if target not in makers:
        raise BadInput(f"--target {target!r} is not one", f"choose of {', '.join(TARGETS)}")
    listed = () if wishes.include_data else export.carried
    more, readme = makers[target](export, wishes, listed)
    files = bundle.common(export) | {name: text.encode() for name, text in more.items()}
    files["README.md"] = (_head(target, export) + readme + _data(listed)).encode()
    return Bundle(target, export, files, export.carried if wishes.include_data else ())


Made = tuple[dict[str, str], str]
"""Files of the target, and its part of the README."""


def _skypilot(export: Export, wishes: Wishes, listed: tuple[Carried, ...]) -> Made:
    wish = wishes.task
    name = labels.label(export.run)
    home = shlex.quote(f"work/training/{export.run}")
    bring = f"mkdir -p {home} && cp -r BUCKET/{name}/. {home}/   # BUCKET: mounted, or copied here"
    if wish.volume:
        bring = f"# copy training/{export.run} out of the volume {wish.volume} into work/"
    elif not wish.bucket:
        bring = f"rsync -a {name}:sky_workdir/work/training/ work/training/"
    text = _SKYPILOT.format(version=skypilot.VERSION, launch=skypilot.launch(export, wish),
                            bring=bring,
                            logs="jobs logs" if wish.spot else f"logs {name}")  # fmt: skip
    return {**_scripts(export), "task.yaml": skypilot.text(export, wish, listed)}, text


def _cluster(export: Export, wishes: Wishes, _: tuple[Carried, ...]) -> Made:
    wish = wishes.manifests
    name = labels.label(export.run)
    wheel, _data = wheelhouse.wheel()
    copies = "".join(
        f"{shlex.join(['kubectl', 'cp', str(c.source), f'{name}-loader:/data/{c.name}'])}\n    "
        for c in export.carried
    )
    folders = sorted({f"/data/{one.name}".rpartition("/")[0] for one in export.carried})
    secrets = "".join(f' --from-literal={s}="${s}"' for s in export.secrets)
    secret = f"kubectl create secret generic {name}-secrets{secrets}\n    " if secrets else ""
    text = _CLUSTER.format(
        image=shlex.quote(wish.image), secret=secret, copies=copies, name=name,
        folders=shlex.join(folders), grace=export.grace_s, run=export.run,
    )  # fmt: skip
    made = {
        "volumes.yaml": cluster.text(cluster.volumes(export, wish)),
        "loader.yaml": cluster.text([cluster.loader(export, wish)]),
        "job.yaml": cluster.text([cluster.job(export, wish)]),
        "Dockerfile": cluster.dockerfile(export, wheel),
    }
    return made, text


def _ssh(export: Export, wishes: Wishes, listed: tuple[Carried, ...]) -> Made:
    if export.nodes > 1:
        raise BadInput(
            f"an ssh bundle is for one host, and this run wants {export.nodes}",
            "see docs/multi-gpu.md for several by hand, or --target skypilot or k8s",
        )
    host = "" if wishes.host.host else " --host USER@HOST"
    made = {**_scripts(export), "remote.sh": scripts.remote(export, wishes.host, listed)}
    return made, _SSH.format(host=host)


def _scripts(export: Export) -> dict[str, str]:
    wheel, _ = wheelhouse.wheel()
    return {"setup.sh": scripts.setup(export, wheel), "run.sh": scripts.run(export)}


def _head(target: str, export: Export) -> str:
    command = shlex.join(export.command)
    return (
        f"# {export.run}\n\nMade by `leviathan cloud export --target {target}`. It trains with\n\n"
        f"    {command}\n\nwhich begins the run, or goes on from its newest sound checkpoint.\n"
        + (_SECRETS.format(names=", ".join(export.secrets)) if export.secrets else "")
    )


_SECRETS = """
Wanted in the environment there, where you use what it is for: {names}. No value of it is in here.
"""

_SKYPILOT = """
## SkyPilot {version}

    {launch} task.yaml    # begin; the same again goes on
    sky {logs}

To bring the run home, then `leviathan checkpoints verify`:

    {bring}
"""

_CLUSTER = """
## Kubernetes

    docker build -t {image} . && docker push {image}
    {secret}kubectl apply -f volumes.yaml -f loader.yaml
    kubectl wait --for=condition=Ready pod/{name}-loader
    kubectl exec {name}-loader -- mkdir -p {folders}
    {copies}kubectl delete -f loader.yaml
    kubectl apply -f job.yaml           # only now: a file that lacks would be mounted as a folder
    kubectl logs -f -l app.kubernetes.io/instance={name}

A stop takes up to {grace} s: the step ends, the checkpoint commits. To stop, and before what has
failed is begun anew, `kubectl delete -f job.yaml`; `kubectl apply -f job.yaml` again goes on. To
bring the run home, copy `work/training/{run}` out of the volume {name}-work.
"""

_SSH = """
## A machine reached by ssh

    ./remote.sh push{host}      # what is here; again, only what is new
    ./remote.sh setup{host}     # Python environment there, once
    ./remote.sh start{host}     # in tmux; again, goes on or says that it runs
    ./remote.sh status{host}
    ./remote.sh stop{host}      # saves first
    ./remote.sh pull{host}      # called in your project: into ./work/training

`--port`, `--key` and `--dir` say what ssh does not know. A token is best put there once:
`.venv/bin/hf auth login`.
"""


def _data(listed: tuple[Carried, ...]) -> str:
    if not listed:
        return ""
    size = sum(one.bytes for one in listed)
    return (
        f"\n## Data\n\n{len(listed)} files, {size / 2**30:.2f} GiB, are not in here but listed in "
        f"{bundle.MANIFEST}, with digests; they are sent from where they lie.\n"
    )
