"""The manifests are what KubeRay's own schemas allow, and say what the other files say."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.runtime_env import RuntimeEnv

from tests.serve.test_config import check
from tests.tools.cluster import ROOT, UniqueKeys, proxy_env, read, start_options

KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "crds"
CLUSTERS = {"rayjob": "rayClusterSpec", "rayservice": "rayClusterConfig"}
#: Of the kinds whose schemas are Kubernetes' or Prometheus' own: the keys that are used here.
OTHERS = {
    "ConfigMap": {"data"},
    "PersistentVolumeClaim": {"spec.accessModes", "spec.storageClassName", "spec.resources.requests.storage"},
    "NetworkPolicy": {"spec.podSelector.matchLabels", "spec.policyTypes", "spec.ingress"},
    "PodMonitor": {"spec.selector.matchLabels", "spec.podTargetLabels", "spec.podMetricsEndpoints"},
}


def strict(schema: Any) -> Any:
    """A schema that refuses keys it does not name, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


@cache
def schema(kind: str) -> Any:
    path = SCHEMAS / f"ray.io_{kind}s.yaml.gz"
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not here: {path} (the operator's helm-chart/kuberay-operator/crds, zipped)")
    with gzip.open(path) as file:
        crd = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    made = strict(next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"])
    made["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return made


def problems(kind: str, manifest: dict[str, Any]) -> list[str]:
    # OpenAPI 3.0 is closest to this draft.
    from jsonschema import Draft4Validator

    return [f"{error.json_path}: {error.message}" for error in Draft4Validator(schema(kind)).iter_errors(manifest)]


def manifest(name: str) -> dict[str, Any]:
    return read(f"cluster/kuberay/{name}.yaml")


def cluster(name: str) -> dict[str, Any]:
    made: dict[str, Any] = manifest(name)["spec"][CLUSTERS[name]]
    return made


def groups(name: str) -> list[dict[str, Any]]:
    """The head's group and those of the workers."""
    made = cluster(name)
    return [made["headGroupSpec"], *made["workerGroupSpecs"]]


def documents() -> list[dict[str, Any]]:
    return [one for path in sorted(KUBERAY.glob("*.yaml")) for one in yaml.load_all(path.read_text(), UniqueKeys)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberay_accepts_it(name: str) -> None:
    assert manifest(name)["apiVersion"] == "ray.io/v1"
    assert problems(name, manifest(name)) == []


def test_typing_errors_are_found() -> None:
    service = manifest("rayservice")
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    worker["minReplica"] = worker.pop("minReplicas")
    worker["template"]["spec"]["containers"][0]["workDir"] = "/"
    found = " ".join(problems("rayservice", service))
    assert "'minReplica' was unexpected" in found and "'workDir' was unexpected" in found
    assert "'minReplicas' is a required property" in found


def test_the_other_manifests_have_the_keys_of_their_kinds() -> None:
    def reaches(tree: Any, path: str) -> bool:
        for key in path.split("."):
            if key not in tree:
                return False
            tree = tree[key]
        return True

    others = [one for one in documents() if one["kind"] not in ("RayJob", "RayService")]
    assert {one["kind"] for one in others} == set(OTHERS)
    for one in others:
        assert one["apiVersion"] and one["metadata"]["name"]
        assert all(reaches(one, path) for path in OTHERS[one["kind"]])
        assert set(one) == {"apiVersion", "kind", "metadata", "data" if one["kind"] == "ConfigMap" else "spec"}
        assert set(one.get("spec", {})) == {p.split(".")[1] for p in OTHERS[one["kind"]] if "." in p}


def test_the_service_deploys_serve_config() -> None:
    text = manifest("rayservice")["spec"]["serveConfigV2"]
    assert text == (ROOT / "serve" / "config.yaml").read_text(), "copy serve/config.yaml into serveConfigV2, indented"
    check(yaml.safe_load(text))


def test_the_job_runs_in_the_runtime_env_of_jobs() -> None:
    spec = manifest("rayjob")["spec"]
    env = yaml.safe_load(spec["runtimeEnvYAML"])
    code = env.pop("working_dir")
    assert code == read("serve/config.yaml")["applications"][0]["runtime_env"]["working_dir"]
    assert env == read("jobs/runtime_env.yaml")
    RuntimeEnv(working_dir=code, **env)
    program, script, *_ = spec["entrypoint"].split()
    assert program == "python" and (ROOT / script).exists()


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_work_on_the_head_and_gpus_in_one_group(name: str) -> None:
    head, *workers = groups(name)
    assert head["resources"] == {"CPU": "0"}
    assert [worker["groupName"] for worker in workers] == ["gpu", "cpu"]
    for group in groups(name):
        assert group["labels"] == {"pool": group.get("groupName", "head")}
        assert set(group["rayStartParams"]) <= start_options()
        has_gpu = group.get("groupName") == "gpu"
        assert ("GPU" in group["resources"]) == has_gpu
        assert ("nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]) == has_gpu
    if name == "rayjob":
        assert all(worker["minReplicas"] >= 1 for worker in workers), "a stage's pool is as large as its nodes"
    else:
        [expander] = read("serve/config.yaml")["applications"][0]["deployments"]
        # A new model starts beside the old one.
        assert workers[0]["maxReplicas"] >= 2 * expander["autoscaling_config"]["max_replicas"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_closed_and_start_from_an_empty_directory(name: str) -> None:
    import ray

    assert cluster(name)["rayVersion"] == ray.__version__
    assert cluster(name)["authOptions"]["mode"] == "token"
    assert cluster(name)["enableInTreeAutoscaling"] and cluster(name)["autoscalerOptions"]["version"] == "v2"
    for group in groups(name):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        # The second autoscaler takes a pod that starts again for another node.
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["workingDir"] == "/home/ray"
        assert container["envFrom"] == [{"configMapRef": {"name": "aqe-proxy"}}]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        spill = group["rayStartParams"].get("object-spilling-directory")
        assert spill is None or spill in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_service_finds_its_model_and_keys() -> None:
    args = read("serve/config.yaml")["applications"][0]["args"]
    for group in groups("rayservice"):
        mounts = {mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
        for path in (args["model"], args["keys_file"]):
            assert any(Path(path).is_relative_to(mount) for mount in mounts)


def test_names_are_those_of_the_shared_manifests() -> None:
    named = {(one["kind"], one["metadata"]["name"]) for one in documents()}
    assert {("ConfigMap", "aqe-proxy"), ("PersistentVolumeClaim", "aqe-shared")} <= named
    shared = {"shared": {"claimName": "aqe-shared"}}
    for name in CLUSTERS:
        for group in groups(name):
            volumes = group["template"]["spec"]["volumes"]
            claims = {v["name"]: v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v}
            assert claims == shared


def test_pods_have_the_proxys_variables() -> None:
    [config] = [one for one in documents() if one["kind"] == "ConfigMap"]
    assert config["data"] == proxy_env()


def test_prometheus_scrapes_ports_that_pods_have() -> None:
    [monitor] = [one for one in documents() if one["kind"] == "PodMonitor"]
    [policy] = [one for one in documents() if one["kind"] == "NetworkPolicy"]
    ports: dict[str, int] = {}
    for name in CLUSTERS:
        for group in groups(name):
            for port in group["template"]["spec"]["containers"][0]["ports"]:
                assert ports.setdefault(port["name"], port["containerPort"]) == port["containerPort"]
            assert str(ports["metrics"]) == group["rayStartParams"]["metrics-export-port"]
    scraped = {ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    allowed = [{port["port"] for port in rule.get("ports", [])} for rule in policy["spec"]["ingress"]]
    assert scraped in allowed and {ports["serve"]} in allowed
