"""``doctor`` tells the truth about a machine, with torch and without."""

import json
import sys

import pytest
from typer.testing import CliRunner

from pipecat_duplex.cli import app
from pipecat_duplex.commands import doctor
from pipecat_duplex.commands.doctor import Diagnosis, StepTimes, estimate_sessions

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "HUB_TIMEOUT_SECS", 0.2)
    monkeypatch.setattr(doctor, "WARM_UP_STEPS", 1)


def found(median_ms: dict[int, float], *, memory_gib: float = 64, kv_bytes: int = 2**20):
    return Diagnosis(
        python="3",
        packages={},
        extras={},
        cpu_cores=2,
        memory_gib=memory_gib,
        checkpoint={
            "lm_parameters": 10**6,
            "mimi_parameters": 10**6,
            "kv_bytes_per_slot": kv_bytes,
            "dtype": "float32",
        },
        steps=[StepTimes(slots, ms, ms) for slots, ms in median_ms.items()],
    )


def test_sessions_are_limited_by_time():
    # 18 ms for every step and 2 ms for each conversation: (64 - 18) / 2.
    assert estimate_sessions(found({1: 20, 4: 26})) == 23


def test_sessions_are_limited_by_memory():
    assert estimate_sessions(found({1: 20, 4: 26}, memory_gib=1, kv_bytes=2**28)) == 3


def test_sessions_never_count_below_zero():
    assert estimate_sessions(found({1: 300, 4: 600})) == 0


def test_one_measurement_gives_no_estimate():
    assert estimate_sessions(found({1: 20})) is None


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


@pytest.mark.engine
def test_steps_are_measured(tiny_checkpoint, monkeypatch):
    pytest.importorskip("moshi")
    monkeypatch.setattr(doctor, "MEASURED_STEPS", 10)

    result = RUNNER.invoke(app, ["doctor", "--json", "--checkpoint", str(tiny_checkpoint)])

    report = json.loads(result.stdout)
    assert [times["slots"] for times in report["steps"]] == [1, doctor.SEVERAL_SLOTS]
    assert all(0 < times["median_ms"] <= times["p99_ms"] for times in report["steps"])
    assert report["checkpoint"]["name"] == str(tiny_checkpoint)
    assert report["sessions"] is not None
    assert result.exit_code == (0 if report["can_converse"] else 1)


def test_the_embedded_model_is_measured_without_torch(without_torch, monkeypatch):
    monkeypatch.setattr(doctor, "MEASURED_STEPS", 10)

    result = RUNNER.invoke(app, ["doctor", "--json"])

    report = json.loads(result.stdout)
    assert report["checkpoint"]["runtime"] == "onnx"
    assert [times["slots"] for times in report["steps"]] == [1, doctor.SEVERAL_SLOTS]


def test_a_checkpoint_that_is_not_there_is_a_problem_not_a_crash():
    result = RUNNER.invoke(app, ["doctor", "--json", "--checkpoint", "./nowhere"])

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert "nowhere" in report["problems"][0]["what"]
