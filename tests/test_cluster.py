"""Kubernetes manifests: valid by Kubernetes' and the operators' own schemas, strictly."""

import json
import signal
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml
import zstandard

from fakes.processes import LEVIATHAN, Training
from leviathan import checkpoints

CRDS = Path(__file__).parent / "recorded/crds"
KINDS = {"job": "1", "jobset": "2", "pytorchjob": "3"}
HOSTILE = 'it\'s "$(HOME)" $$ ü;& -x.jsonl'


@pytest.fixture
def export(run_cli, project):
    def export(kind: str = "job", *options: str) -> Path:
        done = run_cli(
            "cloud", "export", "-p", "a100x8", "-r", "tiny", "-s", "full", "-t", "k8s", "--kind",
            kind, "--nodes", KINDS[kind], "-o", "out", *options,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return project / "out"

    return export


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def pod_of(job: dict) -> dict:
    """The pod's specification inside any of the kinds."""
    spec = job["spec"]
    if job["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    if job["kind"] == "PyTorchJob":
        spec = spec["pytorchReplicaSpecs"]["Worker"]
    return spec["template"]["spec"]


def strict(schema):
    """A structural schema that refuses what the API server would prune."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    open_ended = made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and not open_ended:
        made.setdefault("additionalProperties", False)
    return made


@cache
def crd(name: str) -> dict:
    packed = (CRDS / f"{name}.json.zst").read_bytes()
    recorded = json.loads(zstandard.decompress(packed))
    schema = strict(recorded["schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return {**recorded, "schema": schema}


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_valid(export, kind):
    out = export(kind, "--secret", "HF_TOKEN")
    found = [d for name in ("volumes", "loader", "job") for d in documents(out / f"{name}.yaml")]
    core = [d for d in found if d["kind"] not in {"JobSet", "PyTorchJob"}]
    for document in core:
        kubernetes_validate.validate(document, "1.31", strict=True)
    assert len(found) - len(core) == (kind != "job")
    job = found[-1]
    if kind != "job":
        recorded = crd(kind)
        assert job["apiVersion"] == f"{recorded['group']}/{recorded['version']}"
        jsonschema.validate(job, recorded["schema"])
    # Of a PyTorchJob's pods its operator sets the restart policy.
    pod = {"restartPolicy": "Never", **pod_of(job)}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod},
        "1.31",
        strict=True,
    )


@pytest.mark.parametrize("kind", ["jobset", "pytorchjob"])
@pytest.mark.parametrize("change", [{"surplus": 1}, {"containers": "none"}])
def test_the_recorded_schemas_refuse_what_is_wrong(export, kind, change):
    (job,) = documents(export(kind) / "job.yaml")
    pod_of(job).update(change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, crd(kind)["schema"])


def test_the_pod_is_a_careful_one(export):
    (job,) = documents(export("job", "--secret", "HF_TOKEN", "--grace-s", "77") / "job.yaml")
    pod = pod_of(job)
    (train,) = pod["containers"]
    assert (train["command"], train["args"][0]) == (["leviathan"], "train")  # no shell
    assert pod["terminationGracePeriodSeconds"] == 77
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert train["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    (token,) = [e for e in train["env"] if e["name"] == "HF_TOKEN"]
    reference = token["valueFrom"]["secretKeyRef"]
    assert reference == {
        "name": "tiny-full-a100x8-1055904c-secrets", "key": "HF_TOKEN", "optional": True,
    }  # fmt: skip
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert [(r["action"], r.get("onExitCodes", {}).get("values")) for r in rules] == [
        ("Ignore", None), ("FailJob", [2, 3]), ("Count", [4]),
    ]  # fmt: skip


def test_hosts_meet_at_the_first_pod(export):
    (jobset,) = documents(export("jobset") / "job.yaml")
    name = jobset["metadata"]["name"]
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert pod_of(jobset)["containers"][0]["args"][-6:] == [
        "--nodes", "2", "--rdzv", f"{name}-host-0-0.{name}:29400", "--node-rank", "$(NODE_RANK)",
    ]  # fmt: skip


def test_the_operator_gives_ranks_to_a_pytorchjob(export, project):
    (job,) = documents(export("pytorchjob") / "job.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert (replicas["Master"]["replicas"], replicas["Worker"]["replicas"]) == (1, 2)
    (container,) = pod_of(job)["containers"]
    assert container["name"] == "pytorch"
    assert container["args"][-4:] == [
        "--rdzv", f"{job['metadata']['name']}-master-0:29400", "--node-rank", "$(RANK)",
    ]  # fmt: skip


def test_what_kubernetes_would_expand_arrives_as_it_is(export, project):
    (project / HOSTILE).write_bytes((project / "rows.jsonl").read_bytes())
    out = export("job", "--set", "corpus=" + json.dumps(HOSTILE))
    (job,) = documents(out / "job.yaml")
    (train,) = pod_of(job)["containers"]
    told = json.loads((out / "MANIFEST.json").read_text())["command"]
    # kubelet: $$ is a dollar, $(NAME) is expanded (k8s.io/kubernetes/third_party/forked/golang/expansion)
    assert [arg.replace("$$", "$") for arg in train["args"]] == told[1:]
    assert any("$$(HOME)" in arg for arg in train["args"])
    assert f"/workspace/{HOSTILE}" in [m["mountPath"] for m in train["volumeMounts"]]


def test_a_stop_reaches_leviathan_as_the_first_process_of_its_container(
    run_cli, project, trainings
):
    """In a process namespace, where nobody handles a signal unless the first process does."""
    done = run_cli("cloud", "export", "-p", "tiny", "-r", "tiny", "-s", "full", "-t", "k8s",
                   "-o", "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    (job,) = documents(project / "out/job.yaml")
    (train,) = pod_of(job)["containers"]
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", LEVIATHAN,
             *(arg.replace("$$", "$") for arg in train["args"])]  # fmt: skip
    container = Training(
        words, trainings, trainings.environment({"steps": 500, "step_s": 0.03}), {}
    )
    trainings.started.append(container)
    container.reached(7)
    (first,) = psutil.Process(container.process.pid).children()
    first.send_signal(signal.SIGTERM)
    assert container.end() == 4, container
    assert "stopped (SIGTERM): saved checkpoint-" in container.stdout
    assert checkpoints.scan(trainings.run_dir)[-1].committed


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--kind", "job", "--nodes", "2"], "--kind job is not for 2 hosts"),
        (["--kind", "jobset"], "--kind jobset is not for 1 host;"),
        (["--kind", "cronjob"], "--kind 'cronjob' is not one"),
        (["--set", "corpus=a:b.jsonl"], "'a:b.jsonl' cannot be mounted"),
    ],
)
def test_what_no_manifest_can_be(run_cli, project, options, line):
    (project / "a:b.jsonl").write_bytes((project / "rows.jsonl").read_bytes())
    done = run_cli("cloud", "export", "-p", "tiny", "-r", "tiny", "-s", "full", "-t", "k8s",
                   "-o", "o", *options)  # fmt: skip
    assert done.exit_code == 2, done.output
    assert line in done.stderr
    assert not (project / "o").exists()
