"""PyTorch's tensors and modules arrive unchanged, without a copy of their memory."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.tests.round_trips import (
    any_shares_memory,
    family,
    in_each_way,
    received,
    sent,
)

torch: Any = pytest.importorskip(
    "torch", reason="PyTorch is not installed: its usual build is several GB"
)
nn: Any = torch.nn


def with_gradient(t):
    (t * 2).sum().backward()
    return t


TENSORS = {
    "of integers": torch.arange(6).reshape(2, 3),
    "no axes": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "slice": torch.arange(10)[2:5],
    "steps": torch.arange(10)[::2],
    "expanded": torch.ones(1).expand(5),
    "bool": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.float16),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "conjugated": torch.tensor([1 + 2j]).conj(),
    "requires a gradient": torch.ones(3, requires_grad=True),
    "has a gradient": with_gradient(torch.ones(3, requires_grad=True)),
    "sparse": torch.eye(3).to_sparse(),
    "parameter": nn.Parameter(torch.ones(2)),
    "frozen parameter": nn.Parameter(torch.ones(2), requires_grad=False),
    "parameter with a gradient": with_gradient(nn.Parameter(torch.ones(2))),
    "buffer": nn.Buffer(torch.ones(2)),
}


def assert_same(t, expected, gradient=True):
    assert type(t) is type(expected)
    assert t.dtype is expected.dtype
    assert t.layout is expected.layout
    assert t.shape == expected.shape
    assert t.requires_grad is expected.requires_grad
    assert torch.equal(t.to_dense(), expected.to_dense())
    if expected.is_leaf and gradient:
        assert (t.grad is None) is (expected.grad is None)
        assert t.grad is None or torch.equal(t.grad, expected.grad)


@pytest.mark.parametrize("t", TENSORS.values(), ids=TENSORS)
@in_each_way
def test_a_tensor_arrives_unchanged(t, way):
    assert_same(way(t), t)


@in_each_way
def test_a_computed_tensor_that_requires_a_gradient_arrives_as_a_leaf(way):
    t = torch.ones(3, requires_grad=True) * 2
    arrived = way(t)
    assert arrived.requires_grad
    assert arrived.is_leaf
    assert torch.equal(arrived, t)


@in_each_way
def test_a_tensor_keeps_its_attributes(way):
    t = torch.ones(3)
    t.unit = "m"
    assert way(t).unit == "m"


def test_the_memory_of_a_tensor_is_copied_by_neither_sender_nor_receiver():
    t = torch.arange(1000)
    _, frames = serialize(t)
    assert any_shares_memory(frames[:1], t.numpy())
    frames = received(dumps(Serialize(t)))
    assert any_shares_memory(frames[-1:], loads(frames).numpy())


def test_a_received_tensor_is_writeable():
    frames = [bytes(frame) for frame in dumps(Serialize(torch.zeros(3)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loads(frames)[0] = 1
    assert loads(frames)[0] == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.encoder.weight
        self.sizes = [1, 2]

    def forward(self, x):
        return self.decoder(self.encoder(x))


class OwnAndInner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.weight = self.linear.weight


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.listed = [self.weight]


def trained():
    m = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 1))
    m(torch.rand(4, 1, 3)).sum().backward()
    m[3].bias.requires_grad_(False)
    return m.eval()


MODULES = {
    "linear": nn.Linear(2, 3),
    "trained": trained(),
    "tied": Tied(),
    "own and inner": OwnAndInner(),
    "listed": Listed(),
    "recurrent": nn.LSTM(2, 3),
    "bfloat16": nn.Linear(2, 3).to(torch.bfloat16),
    "without parameters": nn.ReLU(),
}


def assert_same_module(m, expected):
    assert type(m) is type(expected)
    assert repr(m) == repr(expected)
    assert m.training is expected.training
    assert vars(m).keys() == vars(expected).keys()
    assert {name: type(x) for name, x in vars(m).items()} == {
        name: type(x) for name, x in vars(expected).items()
    }
    named = dict(m.named_parameters(remove_duplicate=False))
    for name, parameter in expected.named_parameters(remove_duplicate=False):
        # Modules are sent without gradients, as they are pickled.
        assert_same(named[name], parameter, gradient=False)
    assert [list(b.shape) for b in m.buffers()] == [list(b.shape) for b in expected.buffers()]
    assert list(map(repr, m.state_dict().values())) == list(
        map(repr, expected.state_dict().values())
    )


@pytest.mark.parametrize("m", MODULES.values(), ids=MODULES)
@in_each_way
def test_a_module_arrives_unchanged(m, way):
    assert_same_module(way(m), m)


@in_each_way
def test_a_received_module_computes_the_same(way):
    m, x = trained(), torch.rand(4, 1, 3)
    assert torch.equal(way(m)(x), m(x))


@pytest.mark.parametrize("m", [Tied(), OwnAndInner()], ids=lambda m: type(m).__name__)
@in_each_way
def test_shared_parameters_arrive_shared(m, way):
    arrived = way(m)
    assert len(list(arrived.parameters())) == len(list(m.parameters()))


@in_each_way
def test_two_references_to_a_parameter_arrive_as_one_parameter(way):
    arrived = way(Listed())
    assert arrived.listed[0] is arrived.weight
    arrived = way(nn.LSTM(2, 3))
    assert arrived._flat_weights[0] is arrived.weight_ih_l0


@in_each_way
def test_a_module_with_a_reference_to_itself_arrives_unchanged(way):
    m = nn.Linear(2, 2)
    m.owner = [m]
    arrived = way(m)
    assert arrived.owner[0] is arrived


@in_each_way
def test_a_received_module_can_be_trained_and_takes_hooks(way):
    m = way(nn.Linear(2, 3))
    seen = []
    handle = m.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    m(torch.ones(1, 2)).sum().backward()
    handle.remove()
    assert seen == [(1, 3)]
    assert m.weight.grad is not None


def test_the_memory_of_parameters_is_copied_by_neither_sender_nor_receiver():
    m = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100).to(torch.bfloat16))
    header, frames = serialize(m)
    assert family(m) == "dask"
    addresses = {t.data_ptr() for t in m.parameters()}
    import numpy as np

    views = {np.frombuffer(f, "u1").ctypes.data for f in frames if memoryview(f).nbytes}
    assert addresses <= views
    arrived = deserialize(header, frames)
    assert {t.data_ptr() for t in arrived.parameters()} == addresses


def test_a_hook_is_sent_with_its_module():
    m = nn.Linear(2, 2)
    m.register_forward_hook(lambda module, args, out: out * 0)
    assert sent(m)(torch.ones(1, 2)).abs().sum() == 0
    assert copy.deepcopy(m)(torch.ones(1, 2)).abs().sum() == 0
