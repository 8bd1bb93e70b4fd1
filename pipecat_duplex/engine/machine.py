"""What this process may use of the machine: cores and memory, within the limits of its container.

Containers limit by Linux control groups (cgroups), version 2 or 1. The limits of all parent groups
apply as well.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where cgroups are mounted."""

CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
"""Names the cgroups of this process."""


def count_cores(
    cgroup_root: Path = CGROUP_ROOT, cgroup_membership: Path = CGROUP_MEMBERSHIP
) -> int:
    """Count the cores that this process may use, by its affinity and the quotas of its cgroups.

    A quota of 1.5 cores counts as one: a second thread would be stopped for half of its time.

    Args:
        cgroup_root: Where cgroups are mounted.
        cgroup_membership: Names the cgroups of this process.

    Returns:
        At least 1.
    """
    limits = [float(_count_scheduled_cores())]
    for folder in _folders("cpu", cgroup_root, cgroup_membership):
        quota_us, period_us = _read_numbers(folder / "cpu.max")
        if quota_us is None:
            (quota_us,) = _read_numbers(folder / "cpu.cfs_quota_us", 1)
            (period_us,) = _read_numbers(folder / "cpu.cfs_period_us", 1)
        if quota_us is not None and period_us is not None and quota_us > 0 and period_us > 0:
            limits.append(quota_us / period_us)
    return max(1, math.floor(min(limits)))


def available_memory_bytes(
    cgroup_root: Path = CGROUP_ROOT, cgroup_membership: Path = CGROUP_MEMBERSHIP
) -> int | None:
    """Return the memory of the machine, or the limit of this process's cgroups if that is lower.

    What is in use already is not taken off.

    Args:
        cgroup_root: Where cgroups are mounted.
        cgroup_membership: Names the cgroups of this process.

    Returns:
        Bytes; ``None`` where neither the machine nor a cgroup says.
    """
    limits: list[int] = []
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        pass  # Windows
    for folder in _folders("memory", cgroup_root, cgroup_membership):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            (limit,) = _read_numbers(folder / name, 1)
            if limit is not None and limit > 0:
                limits.append(limit)
    return min(limits, default=None)


def _count_scheduled_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups that limit this process, with all parents.

    A container may see its own cgroup as the root of the mount, while the membership still names
    the path on the host: folders that do not exist simply hold no limits.
    """
    try:
        lines = membership.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    mounts = {root: "/", root / controller: "/", root / "unified": "/"}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            mounts[root] = mounts[root / "unified"] = path
        elif controller in controllers.split(","):
            mounts[root / controllers] = mounts[root / controller] = path
    for mount, path in mounts.items():
        folder = mount / path.lstrip("/")
        while True:
            yield folder
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent


def _read_numbers(path: Path, count: int = 2) -> list[int | None]:
    """Read the numbers of a file; ``None`` for what is missing, or is ``max``."""
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError):
        words = []
    numbers = [int(word) if word.isdecimal() else None for word in words[:count]]
    return numbers + [None] * (count - len(numbers))
