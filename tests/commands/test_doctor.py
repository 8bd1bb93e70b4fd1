"""``doctor`` tells the truth about a machine, with torch and without."""

import json
import sys

import pytest
from typer.testing import CliRunner

from pipecat_duplex.cli import app
from pipecat_duplex.commands import capacity, doctor
from pipecat_duplex.commands.capacity import StepTimes
from pipecat_duplex.commands.doctor import Diagnosis
from pipecat_duplex.engine.model import ModelSummary

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "HUB_TIMEOUT_SECS", 0.2)
    monkeypatch.setattr(capacity, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(capacity, "MEASURED_STEPS", 10)
    monkeypatch.setattr(capacity, "MOST_SIZES", 2)


def found(median_ms: dict[int, float]) -> Diagnosis:
    steps = [StepTimes(slots, ms, ms) for slots, ms in median_ms.items()]
    return Diagnosis(python="3", packages={}, extras={}, cpu_cores=2, memory_gib=64, steps=steps)


@pytest.mark.parametrize(("median_ms", "good"), [(20.0, True), (70.0, False), (200.0, False)])
def test_a_slow_machine_is_told_so(median_ms: float, good: bool):
    diagnosis = found({1: median_ms})
    doctor._judge(diagnosis)

    assert diagnosis.can_converse is good
    assert good is not any("a step takes" in problem.what for problem in diagnosis.problems)


@pytest.fixture
def without_torch(monkeypatch):
    """Torch cannot be imported, even if a test before has done so."""
    for name in list(sys.modules):
        if name.startswith("pipecat_duplex.engine.torch"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "moshi"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_torch_it_says_what_to_install(without_torch):

    result = RUNNER.invoke(app, ["doctor", "--checkpoint", "kyutai/moshiko-pytorch-bf16"])

    assert result.exit_code == 1
    assert "pip install 'pipecat-duplex[moshi]'" in " ".join(result.stdout.split())
    assert "Traceback" not in result.output


def test_json_without_torch_is_whole(without_torch):
    result = RUNNER.invoke(app, ["doctor", "--json", "--checkpoint", "some/name"])

    report = json.loads(result.stdout)
    assert report["can_converse"] is False
    assert report["extras"]["moshi"] is False
    assert report["steps"] == []
    assert all(set(problem) == {"what", "remedy"} for problem in report["problems"])


def test_a_hub_that_never_answers_does_not_hold_it_up(monkeypatch):
    class Silent:
        def model_info(self, *args, **kwargs):
            import time

            time.sleep(60)

    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "HfApi", Silent)

    assert doctor._HubCheck().result() == "not reachable"


@pytest.mark.slow
@pytest.mark.engine
def test_steps_are_measured(tiny_checkpoint):
    pytest.importorskip("moshi")
    result = RUNNER.invoke(app, ["doctor", "--json", "--checkpoint", str(tiny_checkpoint)])

    report = json.loads(result.stdout)
    assert [times["slots"] for times in report["steps"]] == [1, capacity.SEVERAL_SLOTS]
    assert all(0 < times["median_ms"] <= times["p99_ms"] for times in report["steps"])
    assert report["checkpoint"]["name"] == str(tiny_checkpoint)
    assert report["sessions"] is not None
    assert result.exit_code == (0 if report["can_converse"] else 1)


def test_the_embedded_model_is_measured_without_torch(without_torch):
    result = RUNNER.invoke(app, ["doctor", "--json"])

    report = json.loads(result.stdout)
    assert report["checkpoint"]["runtime"] == "onnx"
    assert [times["slots"] for times in report["steps"]] == [1, capacity.SEVERAL_SLOTS]


def test_a_checkpoint_that_is_not_there_is_a_problem_not_a_crash():
    result = RUNNER.invoke(app, ["doctor", "--json", "--checkpoint", "./nowhere"])

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert "nowhere" in report["problems"][0]["what"]


LIMITS = {
    "version 2": {"cpu.max": "150000 100000", "memory.max": str(400 << 20)},
    "version 1": {
        "cpu/cpu.cfs_quota_us": "150000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(400 << 20),
    },
}


@pytest.mark.parametrize("version", LIMITS)
def test_a_container_is_as_large_as_its_limits(version: str, tmp_path, monkeypatch):
    from pipecat_duplex.engine import machine

    for name, text in LIMITS[version].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    for name in ("count_cores", "available_memory_bytes"):
        real = getattr(machine, name)
        monkeypatch.setattr(machine, name, lambda real=real: real(tmp_path))

    report = json.loads(RUNNER.invoke(app, ["doctor", "--json"]).stdout)

    assert report["cpu_cores"] == 1
    assert report["memory_gib"] == pytest.approx(400 / 1024)
    # 0.9 * 400 MiB, less 50 MB of weights, at 1.7 * 6.4 MB each.
    assert 20 < capacity.count_by_memory(ModelSummary(**report["checkpoint"]), 400 << 20) < 32
    assert report["sessions"] <= 32
