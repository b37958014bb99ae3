"""Where latency is measured: the name of a device, and what else times depend on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ranksearch.latency.runtimes import Runtime
from ranksearch.sites import device_of


@dataclass(frozen=True)
class Environment:
    """What times of one layer depend on, besides the layer: times of two environments are never taken for one another."""

    device: str
    threads: int
    runtime: str
    version: str

    @classmethod
    def here(cls, model: nn.Module, runtime: Runtime) -> Environment:
        """That of this process, for the device that ``model`` is on."""
        device = device_of(model)
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        return cls(device_name(device), threads, runtime.name, runtime.version())

    def words(self) -> str:
        """In a few words."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.device}{threads}, {self.version}"

    def as_json(self) -> dict[str, str | int]:
        return asdict(self)


def clock_of(model: nn.Module) -> Callable[[], float]:
    """Seconds, as they are to be counted on the device of a model: on one thread of a processor those that this thread has run, which
    leave out what other processes take meanwhile; else those of the wall."""
    alone = device_of(model).type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def device_name(device: torch.device) -> str:
    """The model of a processor or an accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
