"""STAND-IN for ``star.threads``, until that is merged; then delete this file and import from there.

``cpu_quota`` and ``usable_cores`` exist there. ``cgroups`` is ``_cgroups`` there and knows the
controller ``cpu`` alone: it needs the controller as an argument.
"""

import os
from collections.abc import Callable, Iterator

__all__ = ["cgroups", "cpu_quota", "usable_cores"]

Read = Callable[[str], str | None]


def cgroups(read: Read, controller: str) -> Iterator[tuple[str, int]]:
    """Folders of this process's cgroups that may govern ``controller``, and their version."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        root = "/sys/fs/cgroup" if not names else f"/sys/fs/cgroup/{controller}"
        if not names or controller in names.split(","):
            for folder in dict.fromkeys([root + path.rstrip("/"), root]):
                yield folder, 1 if names else 2


def cpu_quota(read: Read) -> float | None:
    """The least quota of cores (version 2 alone)."""
    found = []
    for folder, version in cgroups(read, "cpu"):
        quota, period = [*(read(f"{folder}/cpu.max") or "").split(), "", ""][:2]
        if version == 2 and quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
