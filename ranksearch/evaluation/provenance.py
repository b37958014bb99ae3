"""Where an evaluation happened. Its results depend on that in their last bits, and its times do altogether."""

from __future__ import annotations

import platform
import socket
from functools import lru_cache
from typing import Any

import torch


def provenance(device: torch.device | None = None) -> dict[str, Any]:
    """Host, processor, device, version of torch and number of its threads, as JSON data.

    Args:
        device: of the network; None: the processor."""
    return {
        "host": socket.gethostname(),
        "processor": _processor(),
        "device": _device(device or torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@lru_cache(maxsize=1)
def _processor() -> str:
    """Its model and what torch uses of its instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:  # no Linux
        name = ""
    return f"{name or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
