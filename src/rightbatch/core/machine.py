"""What can be known of this machine before numpy or torch is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_CGROUPS, _PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self")
_FILES = (  # of cgroups v2, then of v1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def processor_name() -> str:
    """The CPU's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may use: affinity, then the container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def free_memory_bytes() -> int:
    """Main memory this process may still take: the machine's, or its container's."""
    free, container = machine_free_bytes(), container_memory()
    return free if container is None else min(free, container)


def machine_free_bytes() -> int:
    """Main memory that the whole machine could still give."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // 2  # [assumed] no better source off Linux


def container_memory() -> int | None:
    """What this process's container may still take: cgroups v2, then v1; else None.

    The tightest of its own group and those around it. Files kept in memory count as
    free: they give way. Beyond the limit a process is not refused memory but killed.
    """
    left = [_left_in(group, *names) for group in _groups() for names in _FILES]
    return min((count for count in left if count is not None), default=None)


def _groups() -> list[Path]:
    """This process's own control group and all around it."""
    groups = [_CGROUPS, _CGROUPS / "memory"]
    try:
        lines = (_PROCESS / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return groups
    for line in lines:
        _, kinds, place = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        root = _CGROUPS / "memory" if kinds else _CGROUPS
        inner = root / place.strip("/")
        while inner != root and root in inner.parents:
            groups.append(inner)
            inner = inner.parent
    return groups


def _left_in(group: Path, limit: str, used: str, files: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        now = int((group / used).read_text())
    except (OSError, ValueError):
        return None
    if not most.isdigit() or int(most) >= 2**60:  # v1 says "unlimited" by a huge number
        return None
    cached = 0
    try:
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, count = line.partition(" ")
            cached = int(count) if name == files else cached
    except (OSError, ValueError):
        pass
    return max(int(most) - now + cached, 0)


def installed(package: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def summary() -> str:
    """One line about the machine that needs no torch."""
    accelerator = " | NVIDIA device" if Path("/dev/nvidia0").exists() else ""
    return (
        f"{processor_name()}, {usable_cores()} cores, "
        f"{free_memory_bytes() / 2**30:.0f} GiB free{accelerator}"
    )
