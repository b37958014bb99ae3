"""The supernet proxy says what measuring the extracted network says."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from small_run import supernet, task

from ranksearch.errors import InvalidArgument
from ranksearch.networks import batch_norm
from ranksearch.proxies import score
from ranksearch.space import DENSE, Configuration
from ranksearch.supernet import SupernetProxy


@pytest.mark.parametrize("batches", [0, 3])
def test_equals_the_extracted_network(batches: int) -> None:
    net = supernet()
    for row in net.space.sample(4, seed=0):
        configuration = net.space.configuration(row)
        found = SupernetProxy(net, task(), batches=batches).measure(configuration)
        extracted = net.extract(configuration)
        if batches:
            batch_norm.recalibrate(extracted, task().normalization(batches))
        wanted = task().measure(extracted)
        assert found["accuracy"] == wanted["accuracy"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_dense_too() -> None:
    net = supernet()
    extracted = net.extract(DENSE)
    batch_norm.recalibrate(extracted, task().normalization(2))
    assert SupernetProxy(net, task(), batches=2).measure(DENSE) == task().measure(extracted)


def test_scores_and_nothing_is_left_behind() -> None:
    net = supernet().train()
    active = net.space.configuration(net.space.sample(1, 9)[0])
    net.activate(active)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rows = np.concatenate([net.space.sample(3, seed=1), net.space.dense[None]])
    loss, accuracy = SupernetProxy(net, task()), SupernetProxy(net, task(), metric="accuracy")
    losses, accuracies = score(loss, net.space, rows), score(accuracy, net.space, rows)
    assert losses.shape == accuracies.shape == (4,)
    assert (losses > 0).all() and (accuracies <= 0).all()  # lower is better
    assert np.array_equal(score(loss, net.space, rows[::-1]), losses[::-1])  # no score depends on the one before
    assert np.array_equal(score(pickle.loads(pickle.dumps(loss)), net.space, rows), losses)
    assert net.active == active and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_follows_the_weights() -> None:
    net = supernet()
    proxy, configuration = SupernetProxy(net, task()), net.space.configuration(net.space.sample(1, 3)[0])
    first = proxy.measure(configuration)
    with torch.no_grad():
        net.weight("0").copy_(torch.randn_like(net.weight("0")))
    assert proxy.measure(configuration) != first
    extracted = net.extract(configuration)  # on the bases of the new weights, which the proxy made
    batch_norm.recalibrate(extracted, task().normalization(4))
    assert proxy.measure(configuration)["loss"] == pytest.approx(task().measure(extracted)["loss"], rel=1e-5)


def test_bad_arguments() -> None:
    net = supernet()
    with pytest.raises(InvalidArgument, match="metric"):
        SupernetProxy(net, task(), metric="beauty")
    with pytest.raises(InvalidArgument, match="batches"):
        SupernetProxy(net, task(), batches=-1)
    proxy = SupernetProxy(net, task())
    assert proxy.covers(net.space.configuration(net.space.sample(1, 0)[0]))
    assert not proxy.covers(Configuration({"0": ("tensor_train", (1, 1))}))
    assert proxy.uncovered(net.space) == {}
