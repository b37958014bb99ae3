"""Forward passes that stop at layers and go on when they are told to. So the passes of many batches, through two networks, take every step
together: what a layer sees of all batches is known before any batch goes through it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.sites import run

_here = threading.local()  # .current: the pass that runs in this thread


class _Closed(Exception):
    """Ends a pass that nobody waits for any more; it is raised inside the pass."""


class Pass:
    """One forward pass without gradients. It runs in a thread of its own, because grad mode, autocast and the like belong to
    threads; the pass and its maker take turns, so that nothing ever runs at the same time.

    ``place`` is the path at which the pass has stopped, and ``value`` what was seen there; both are None before the first stop and
    after the end."""

    def __init__(self, network: nn.Module, example: Any, group: object) -> None:
        self.group = group  # whose stops it makes
        self.place: str | None = None
        self.value: Tensor | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(network, example), daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Go on to the next stop, or to the end. What the network raises is raised here."""
        if not self._ended:
            self._go.release()
            self._back.acquire()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the pass where it is."""
        self._closed = True
        self._go.release()
        self._thread.join()

    def _work(self, network: nn.Module, example: Any) -> None:
        _here.current = self
        self._go.acquire()
        try:
            with suppress(_Closed), torch.no_grad():
                if not self._closed:
                    run(network, example)
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        finally:
            self.place = self.value = None
            self._ended = True
            self._back.release()

    def stop(self, place: str, value: Tensor) -> None:
        """Called inside the pass: let the maker see a value, and wait."""
        self.place, self.value = place, value
        self._back.release()
        self._go.acquire()
        if self._closed:
            raise _Closed


@contextmanager
def passes(network: nn.Module, examples: Iterable[Any], stops: Mapping[str, nn.Module], *, output: bool) -> Iterator[list[Pass]]:
    """Make a pass for every example; none of them is begun.

    Args:
        stops: layers by path; a pass stops before one with its input or, if ``output``, after it with its output.
    """

    group = object()

    def seen(place: str, value: Tensor) -> None:
        current = getattr(_here, "current", None)
        if current is not None and current.group is group:
            current.stop(place, value)

    def before(place: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _module, args, kwargs: seen(place, args[0] if args else next(iter(kwargs.values())))

    def after(place: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _args, result: seen(place, result)

    with ExitStack() as stack:
        for place, module in stops.items():
            if output:
                handle = module.register_forward_hook(after(place))
            else:
                handle = module.register_forward_pre_hook(before(place), with_kwargs=True)
            stack.callback(handle.remove)
        made: list[Pass] = []
        for example in examples:
            made.append(Pass(network, example, group))
            stack.callback(made[-1].close)
        yield made
