"""Optimizers without torch's compiler compute what torch's own do, and import none of it."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from ranksearch.tasks import _optimizers

PAIRS = {
    "SGD": (torch.optim.SGD, _optimizers.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "AdamW": (torch.optim.AdamW, _optimizers.AdamW, {"weight_decay": 1e-2}),
}


def stepped(kind, options, state=None):
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for x in torch.randn(3, 4, 3):
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()
    assert all(p.requires_grad for p in model.parameters())  # a step is none of the graph
    return [p.detach() for p in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("name", PAIRS)
def test_steps_and_states_are_torchs_own(name):
    theirs, ours, options = PAIRS[name]
    state = None
    for _ in range(2):  # anew, and from a state
        found = []
        for kind in (theirs, ours):
            torch.manual_seed(0)
            found.append(stepped(kind, options, state))
        (weights, state), (own, own_state) = found
        assert all(torch.equal(a, b) for a, b in zip(weights, own, strict=True))
        assert own_state["param_groups"] == state["param_groups"]
        for number, values in state["state"].items():
            assert all(torch.equal(torch.as_tensor(values[key]), torch.as_tensor(own_state["state"][number][key])) for key in values)


def test_training_imports_no_compiler():
    code = """
import sys, torch
from torch import nn
from ranksearch.tasks import Classification
x, y = torch.randn(8, 3), torch.arange(8) % 2
task = Classification(train=(x, y), validation=(x, y), batch_size=4, learning_rate=0.1)
task.fine_tune(nn.Linear(3, 2), epochs=1, seed=0)
print("torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False"]
