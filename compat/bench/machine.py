"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from typing import Any


def describe(directory: str) -> dict[str, Any]:
    """The machine, and the file system that holds `directory`."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory_bytes": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "filesystem": _filesystem(directory),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _field(path: str, name: str) -> str:
    try:
        with open(path) as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""


def _filesystem(directory: str) -> str:
    """Type and options of the mount that holds `directory`."""
    path = os.path.realpath(directory)
    best, answer = "", "unknown"
    try:
        with open("/proc/mounts") as file:
            for line in file:
                _, place, kind, options, *_ = line.split()
                inside = path == place or path.startswith(place.rstrip("/") + "/")
                if inside and len(place) >= len(best):
                    best, answer = place, f"{kind} ({options})"
    except OSError:
        pass
    return answer
