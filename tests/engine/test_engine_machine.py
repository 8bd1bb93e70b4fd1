"""Cores and memory within the limits of containers, by files as the kernel writes them."""

import os
from pathlib import Path

import pytest

from pipecat_duplex.engine import machine
from pipecat_duplex.engine.machine import available_memory_bytes, count_cores

GIB = 2**30


@pytest.fixture(autouse=True)
def eight_cores_and_16_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_count_scheduled_cores", lambda: 8)
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


def machine_with(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write cgroup files below ``folder``; return the arguments of both functions."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "75000 25000\n"}, 3),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        ("0::/\n", {"cpu.max": ""}, 8),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "200000 100000\n"}, 2),
        # A container whose membership names the host's path.
        ("0::/host/pod\n", {"cpu.max": "300000 100000\n"}, 3),
        # Version 1, alone and beside version 2.
        ("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "1e5"}, 8),
        (
            "2:cpu,cpuacct:/a\n0::/\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            "1:cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        (
            "1:cpu:/host\n",
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            2,
        ),
    ],
)
def test_cores(tmp_path: Path, membership: str, files: dict[str, str], cores: int) -> None:
    assert count_cores(*machine_with(tmp_path, membership, files)) == cores


@pytest.mark.parametrize(
    ("membership", "files", "memory"),
    [
        ("0::/\n", {}, 16 * GIB),
        ("0::/\n", {"memory.max": "max\n"}, 16 * GIB),
        ("0::/\n", {"memory.max": f"{300 << 20}\n", "memory.current": "100000000\n"}, 300 << 20),
        ("0::/\n", {"memory.max": "max\n", "memory.high": f"{GIB}\n"}, GIB),
        ("0::/a/b\n", {"a/memory.max": f"{2 * GIB}\n", "a/b/memory.max": "max\n"}, 2 * GIB),
        ("0::/\n", {"memory.max": f"{64 * GIB}\n"}, 16 * GIB),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
        ("4:memory:/host\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
    ],
)
def test_memory(tmp_path: Path, membership: str, files: dict[str, str], memory: int) -> None:
    assert available_memory_bytes(*machine_with(tmp_path, membership, files)) == memory


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    nothing = (tmp_path / "no", tmp_path / "none")
    assert count_cores(*nothing) == 8
    assert available_memory_bytes(*nothing) == 16 * GIB
