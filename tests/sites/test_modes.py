"""A model that is run in another mode comes back as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ranksearch.sites import evaluating, mode, unfused


def mixed() -> nn.Sequential:
    """A model in training mode whose second layer is not."""
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3)))
    model[1].eval()
    return model


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_own_mode_back(training: bool) -> None:
    model = mixed()
    before = flags(model)
    assert len(set(before)) == 2
    with mode(model, training=training):
        assert flags(model) == [training] * len(before)
        model.train(not training)
    assert flags(model) == before


@pytest.mark.parametrize("training", [True, False])
def test_also_after_an_error(training: bool) -> None:
    model = mixed()
    before = flags(model)
    with pytest.raises(ZeroDivisionError), mode(model, training=training):
        raise ZeroDivisionError
    assert flags(model) == before


def test_a_model_that_refuses_its_mode_is_given_back_as_it_was() -> None:
    class Refusing(nn.Module):
        def train(self, mode: bool = True) -> Refusing:
            raise ZeroDivisionError

    model = nn.Sequential(nn.Dropout(), Refusing())
    with pytest.raises(ZeroDivisionError), mode(model, training=False):
        pass
    assert flags(model) == [True, True, True]


@pytest.mark.parametrize("fast", [True, False])
def test_the_fused_kernel_is_as_before(fast: bool) -> None:
    mha = torch.backends.mha
    was = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(fast)
    try:
        with pytest.raises(ZeroDivisionError), unfused():
            assert not mha.get_fastpath_enabled()
            raise ZeroDivisionError
        assert mha.get_fastpath_enabled() == fast
    finally:
        mha.set_fastpath_enabled(was)


def test_evaluating_takes_no_gradients_and_calls_every_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    called: list[nn.Module] = []
    layer.linear1.register_forward_hook(lambda module, _args, _output: called.append(module))
    x = torch.randn(2, 3, 8)
    with evaluating(layer):
        assert not torch.is_grad_enabled() and not layer.linear1.training
        torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)  # no dropout
    assert called == [layer.linear1] * 2
    assert torch.is_grad_enabled() and all(flags(layer))
