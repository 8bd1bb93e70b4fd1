"""The manifests of ``deploy/kubernetes``: against the current schema, and against each other."""

import copy
from pathlib import Path

import pytest

from pipecat_duplex.server.metrics import Metrics

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ["cpu", "gpu"]


def merge(base, patch):
    """Lay a patch over a resource as Kustomize does: named entries of lists are merged."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = {key: merge(base.get(key), value) for key, value in patch.items()}
        return {**base, **merged}
    if isinstance(base, list) and isinstance(patch, list) and patch:
        if all(isinstance(each, dict) and "name" in each for each in [*base, *patch]):
            named = {each["name"]: each for each in base}
            for each in patch:
                named[each["name"]] = merge(named.get(each["name"]), each)
            return list(named.values())
    return copy.deepcopy(patch)


def load(folder: Path) -> list[dict]:
    """Return the resources of a folder, with its patches."""
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    resources: list[dict] = []
    for name in settings["resources"]:
        path = folder / name
        found = load(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        resources += found
    for patch in settings.get("patches", []):
        change = yaml.safe_load((folder / patch["path"]).read_text())
        key = (change["kind"], change["metadata"]["name"])
        matching = [n for n, each in enumerate(resources) if _key(each) == key]
        assert len(matching) == 1, f"{patch['path']} changes {key}, which is not there"
        resources[matching[0]] = merge(resources[matching[0]], change)
    return resources


def _key(resource: dict) -> tuple[str, str]:
    return resource["kind"], resource["metadata"]["name"]


def find(resources: list[dict], kind: str) -> dict:
    (found,) = [each for each in resources if each["kind"] == kind]
    return found


def worker_of(resources: list[dict]) -> dict:
    (worker,) = find(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    return worker


def option(worker: dict, name: str) -> int:
    return int(worker["args"][worker["args"].index(name) + 1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schema_is_kept(overlay: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    for resource in load(FOLDER / overlay):
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_workers(overlay: str) -> None:
    resources = load(FOLDER / overlay)
    deployment = find(resources, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    budget = find(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert budget.items() <= labels.items()
    service = find(resources, "Service")["spec"]
    assert service["selector"].items() <= labels.items()
    ports = {port["name"] for port in worker_of(resources)["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= ports
    target = find(resources, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == _key(find(resources, "Deployment"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_has_the_time_to_drain(overlay: str) -> None:
    resources = load(FOLDER / overlay)
    worker = worker_of(resources)
    pod = find(resources, "Deployment")["spec"]["template"]["spec"]
    before_secs = worker["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = worker["readinessProbe"]
    # Nobody is sent to it any more when it is told to stop.
    assert before_secs > readiness["periodSeconds"] * readiness["failureThreshold"]
    needed_secs = before_secs + option(worker, "--drain-secs")
    assert pod["terminationGracePeriodSeconds"] > needed_secs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_scales_on_a_metric_that_the_server_has(overlay: str) -> None:
    resources = load(FOLDER / overlay)
    (metric,) = find(resources, "HorizontalPodAutoscaler")["spec"]["metrics"]
    told = Metrics().render(slots=8, used=1, lag_secs=0.0, draining=False)
    assert f"\n{metric['pods']['metric']['name']} " in told
    slots = option(worker_of(resources), "--slots")
    assert int(metric["pods"]["target"]["averageValue"]) <= 0.8 * slots


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_volumes_are_there(overlay: str) -> None:
    resources = load(FOLDER / overlay)
    pod = find(resources, "Deployment")["spec"]["template"]["spec"]
    named = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in worker_of(resources)["volumeMounts"]} <= named
    for volume in pod["volumes"]:
        claim = volume.get("persistentVolumeClaim")
        if claim:
            assert _key(find(resources, "PersistentVolumeClaim"))[1] == claim["claimName"]


def test_a_gpu_worker_has_a_gpu_and_its_weights() -> None:
    worker = worker_of(load(FOLDER / "gpu"))
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["mountPath"] for mount in worker["volumeMounts"]}
    (home,) = [each["value"] for each in worker["env"] if each["name"] == "HF_HOME"]
    assert {home, "/tmp"} <= mounts
    # The base's settings are still there.
    assert any(each["name"] == "PIPECAT_DUPLEX_API_KEY" for each in worker["env"])
