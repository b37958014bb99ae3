"""Every runtime runs a module on its inputs, and says what it cannot."""

from __future__ import annotations

import importlib.util
import logging
import logging.handlers
import time

import pytest
import torch
from latency_cases import dense_network
from torch import nn

from ranksearch.errors import InvalidArgument, InvalidModel, MissingDependency
from ranksearch.latency import RUNTIMES, Runtime
from ranksearch.latency.bench import Bench
from ranksearch.latency.cache import MeasurementCache
from ranksearch.latency.device import Environment, clock_of
from ranksearch.latency.runtimes import onnx
from ranksearch.latency.runtimes.compiled import _call
from ranksearch.latency.timing import Precision


class Counting(nn.Module):
    """Counts how often it runs, and what it was given; two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)
        self.seen: list[tuple[torch.Size, bool, bool]] = []

    def forward(self, x, scale):
        if not torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            self.seen.append((x.shape, torch.is_grad_enabled(), self.training))
        return self.dropout(self.linear(x)) * scale


@pytest.mark.parametrize("inputs", [(torch.ones(2, 4), torch.ones(1)), {"scale": torch.ones(1), "x": torch.ones(2, 4)}])
def test_eager_runs_the_module_as_it_is(inputs) -> None:
    module = Counting().train()
    work = RUNTIMES["eager"].prepare(module, inputs)
    assert not module.seen
    work()
    work()
    assert module.seen == [(torch.Size([2, 4]), False, False)] * 2


def test_compiled_programs_are_apart() -> None:
    """Modules of one class do not count towards a limit of programs together, from which on they would run eagerly."""
    limit = torch._dynamo.config.recompile_limit
    modules = [nn.Sequential(nn.Identity()) for _ in range(limit + 2)]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    codes = {_call(module).__code__ for module in modules}
    assert len(codes) == len(modules)
    work = RUNTIMES["compile"].prepare(nn.Sequential(nn.Linear(4, 3)).train(), torch.ones(2, 4))
    work()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1  # compiled once, not at every call


@pytest.fixture(params=["eager", "onnxruntime", "cuda_graph"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param == "cuda_graph" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if request.param == "onnxruntime" and any(importlib.util.find_spec(name) is None for name in onnx.PACKAGES):
        pytest.skip("onnx, onnxscript or onnxruntime is not installed")
    return RUNTIMES[request.param]


def test_every_runtime_measures_a_network(runtime: Runtime) -> None:
    dense = dense_network()
    if runtime.name == "cuda_graph":
        dense.model.cuda()
    runtime.check()
    bench = Bench(dense, runtime, batch=2, precision=Precision(least=3, most=3, sample=0.0), cache=MeasurementCache(None))
    found = bench.dense()
    assert found.network > 0 and len(found.layers) == 3 and all(seconds > 0 for seconds in found.layers.values())
    svd = next(d for d in dense.decompositions if d.name == "svd")
    points = bench.points(dense.sites["2"], svd, [(1,), (5,)])
    assert all(0 < i.low <= i.value <= i.high for i in points.values())
    (ratio,) = bench.networks([[("2", svd, (3,)), ("7", svd, (2,))]])
    assert ratio.value > 0
    environment = Environment.here(dense.model, runtime)
    assert environment.runtime == runtime.name and environment.device in environment.words() and environment.version == runtime.version()


def test_a_runtime_that_is_not_installed_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx_of_nobody",))
    with pytest.raises(MissingDependency, match="needs onnx_of_nobody: pip install onnx_of_nobody"):
        RUNTIMES["onnxruntime"].check()


class Odd(nn.Module):
    def forward(self, x):
        return torch.tensor(x.flatten().tolist()) if x.sum() > 0 else x


@pytest.mark.parametrize("runtime", ["onnxruntime"], indirect=True)
def test_the_exporter_says_nothing_of_packages_that_a_network_needs_not(runtime: Runtime) -> None:
    heard = logging.handlers.BufferingHandler(10_000)
    logging.getLogger("torch.onnx").addHandler(heard)
    try:
        runtime.prepare(dense_network().model, torch.ones(2, 3, 6, 6))
    finally:
        logging.getLogger("torch.onnx").removeHandler(heard)
    assert [record.getMessage() for record in heard.buffer if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("runtime", ["onnxruntime"], indirect=True)
def test_what_onnx_cannot_run_is_named(runtime: Runtime) -> None:
    with pytest.raises(InvalidModel, match=r"ONNX fails on Odd.*take the runtime eager"):
        runtime.prepare(Odd(), torch.ones(2, 2))


def test_other_processes_do_not_count_on_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        clock = clock_of(nn.Linear(2, 2))
        begin = clock()
        time.sleep(0.3)  # what another process would take
        assert clock() - begin < 0.25
        torch.set_num_threads(2)
        assert clock_of(nn.Linear(2, 2)) is time.perf_counter
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_graphs_are_refused_before_anything_runs_where_there_is_no_gpu() -> None:
    with pytest.raises(InvalidArgument, match=r"cuda_graph.*NVIDIA GPU.*eager"):
        RUNTIMES["cuda_graph"].check()


def test_graphs_refuse_a_network_on_the_processor() -> None:
    with pytest.raises(InvalidModel, match=r"on cpu.*cuda_graph"):
        RUNTIMES["cuda_graph"].prepare(nn.Linear(2, 2), torch.ones(1, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recording_is_the_network_and_reads_its_inputs_anew() -> None:
    module, x = nn.Linear(8, 8, device="cuda"), torch.zeros(4, 8, device="cuda")
    seen = torch.zeros(4, 8, device="cuda")
    module.register_forward_hook(lambda _module, _args, output: seen.add_(output))
    work = RUNTIMES["cuda_graph"].prepare(module, x)
    seen.zero_()
    x.copy_(torch.randn(4, 8))
    work()
    torch.cuda.synchronize()
    wanted = RUNTIMES["cuda_graph"].runs * nn.functional.linear(x, module.weight, module.bias)
    assert torch.allclose(seen, wanted, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_cannot_be_recorded_is_refused() -> None:
    class Waits(nn.Linear):
        def forward(self, x):
            return super().forward(x) * float(x.sum())

    with pytest.raises(InvalidModel, match="CUDA graph fails on Waits"):
        RUNTIMES["cuda_graph"].prepare(Waits(2, 2).cuda(), torch.ones(2, 2, device="cuda"))
