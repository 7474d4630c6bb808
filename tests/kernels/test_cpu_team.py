"""The parts of a kernel on any number of threads, on threads of its own, and in a forked process: the same bits."""

import copy
import ctypes
import mmap
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.masks.units import mask_units, steepness

pytestmark = pytest.mark.skipif(host_kernels.found() is None, reason="Numba is not installed")
if host_kernels.found() is not None:
    from pdp.kernels.cpu import team, units
    from pdp.kernels.cpu.cuts import Cuts
    from pdp.kernels.cpu.groups import GroupCuts, Grouped, full_cuts, write_full_cuts
    from pdp.kernels.cpu.joint import effective_weights, joined
    from pdp.kernels.cpu.masks import SingleCuts

# Layers of one part and of many; where one begins in the middle of a part of all.
SHAPES = [(40, 36), (64, 64, 3, 3), (300, 1000), (8, 4), (128, 12, 5), (32, 20, 5, 5), (700, 256)]
_random = torch.Generator().manual_seed(3)
WEIGHTS = [torch.randn(shape, generator=_random) * 0.05 for shape in SHAPES]
UPSTREAM = [torch.randn(shape, generator=_random) for shape in SHAPES]


def everything():
    """What each kernel makes of the weights, as arrays."""
    made = []
    cuts = Cuts(WEIGHTS)
    pruned = [weight.numel() // 2 for weight in WEIGHTS]
    for _ in range(2):  # the second time between bounds
        found = cuts.find(WEIGHTS, pruned)
    made.append(found)
    grouped = [full_cuts(weight, 1, 4, 2).movedim(-1, 1) for weight in WEIGHTS]
    made += grouped
    groups = [Grouped(weight, cut, weight.stride(1), 1e-3) for weight, cut in zip(WEIGHTS, grouped, strict=True)]
    for masks in (SingleCuts(list(found.unbind()), [1e-3] * len(WEIGHTS)), GroupCuts(groups, 4)):
        weights = [weight.clone().requires_grad_() for weight in WEIGHTS]
        effective = joined(weights, masks, effective_weights(weights, masks))
        made += [*effective, *torch.autograd.grad(effective, weights, UPSTREAM)]
    layers = []
    for weight in WEIGHTS:
        mask = units.row_squares([weight]).float().mul(10 / weight[0].numel()).sigmoid()
        made.append(mask)
        bias = weight.flatten(1)[:, 0].contiguous()
        layers.append(units.Units(mask, mask, [weight.clone().requires_grad_(), bias.requires_grad_()], [True, False]))
    effective = units.joined(layers, units.mask_layers(layers))
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    upstream = [one for own in UPSTREAM for one in (own, own.flatten(1)[:, 1].contiguous())]
    made += [*effective, *torch.autograd.grad(effective, tensors, upstream)]
    return [one.detach().numpy() for one in made]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def alone(threads):
    threads(1)
    return everything()


def same(found, right):
    assert len(found) == len(right)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_number_of_threads_changes_nothing(count, threads, alone):
    threads(count)
    same(everything(), alone)
    assert torch.get_num_threads() == count


def test_threads_of_its_own_change_nothing(threads, alone, monkeypatch):
    monkeypatch.setattr(team, "_openmp", lambda: None)
    monkeypatch.setattr(team, "_LONG_PART", 1 << 15)
    threads(3)
    same(everything(), alone)


def _send(connection, masks, weights, made):
    masks.write_effective(weights, made)  # no operation of PyTorch's: its own wait for ever in a fork
    connection.send([one.numpy() for one in made])


def test_in_a_forked_process_it_is_the_same_and_ends(threads):
    threads(2)
    masks = SingleCuts([torch.tensor(0.05)] * len(WEIGHTS), [1e-3] * len(WEIGHTS))
    right = [one.numpy() for one in effective_weights(WEIGHTS, masks)]  # OpenMP's threads are there, not in the fork
    made = [torch.zeros_like(one) for one in WEIGHTS]
    ours, theirs = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    forked = fork.Process(target=_send, args=(theirs, masks, WEIGHTS, made))
    forked.start()
    try:
        assert ours.poll(60), "the forked process waits for threads that it does not have"
        same(ours.recv(), right)
    finally:
        forked.kill()
        forked.join()


@pytest.mark.parametrize("inner", [1, 2, 3, 4, 5, 7, 9, 15, 16, 25])
@pytest.mark.parametrize("blocks", [1, 3, 4, 5, 40, 1000])
def test_nothing_behind_a_weight_is_read_and_nothing_behind_a_result_is_written(inner, blocks):
    weight = torch.randn(blocks, 4, inner, generator=torch.Generator().manual_seed(0)) * 0.05
    at_the_end, memory = _before_a_closed_page(weight)
    space = torch.full((blocks * inner + 64,), 7.0)
    cuts = space[: blocks * inner].view(blocks, 1, inner)
    write_full_cuts([at_the_end], [cuts], [inner], 4, 2)
    ordered = weight.abs().sort(dim=1).values
    assert torch.equal(cuts[:, 0], ordered[:, 1] + (ordered[:, 2] - ordered[:, 1]) * 0.5)
    made = torch.full((weight.numel() + 64,), 7.0)
    effective = made[: weight.numel()].view_as(weight)
    GroupCuts([Grouped(at_the_end, cuts, inner, 1e-3)], 4).write_effective([at_the_end], [effective])
    mask = torch.sigmoid((weight.double() ** 2 - cuts.double() ** 2) / 1e-3)
    torch.testing.assert_close(effective.double(), mask * weight, rtol=1e-5, atol=1e-8)
    assert (space[blocks * inner :] == 7).all() and (made[weight.numel() :] == 7).all()
    del at_the_end, memory


def _before_a_closed_page(values):
    """A copy that ends where a page begins that cannot be read, and the memory that holds it."""
    page = mmap.PAGESIZE
    size = values.numel() * 4
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + room), page, 0) == 0
    copied = torch.frombuffer(memory, dtype=torch.float32, count=values.numel(), offset=room - size)
    return copied.view(values.shape).copy_(values), memory


def test_cuts_written_into_tensors_are_those_found_and_a_copy_finds_the_same():
    cuts, held = Cuts(WEIGHTS), [torch.tensor(0.0) for _ in WEIGHTS]
    pruned = [weight.numel() // 3 for weight in WEIGHTS]
    versions = [one._version for one in held]
    for factor in (1.0, 1.001, 1.1):
        weights = [weight * factor for weight in WEIGHTS]
        cuts.find_into(weights, pruned, held)
        assert torch.equal(torch.stack(held), Cuts(weights).find(weights, pruned))
        for other in (copy.deepcopy(cuts), pickle.loads(pickle.dumps(cuts))):
            assert torch.equal(torch.stack(held), other.find(weights, pruned))
    assert all(one._version > before for one, before in zip(held, versions, strict=True))


@pytest.mark.parametrize("pattern, options", [("2:4", {}), ("random", {"sparsity": 0.5})])
def test_a_backward_after_the_cuts_have_moved_computes_with_the_old_ones_or_is_refused(pattern, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 16))
    pruner = Pruner(model, pattern=pattern, schedule={"warmup": "0ep", "ramp": "0ep"}, epochs=2, **options)
    pruner.start_epoch(0)
    outputs = model(torch.ones(2, 16))
    right = torch.autograd.grad(outputs.sum(), model[0].weight, retain_graph=True)[0]
    cut = pruner.layers[0].state["cut"]
    with torch.no_grad():
        for one in model.parameters():
            one.data.mul_(2)  # does not change the version
    pruner.step()
    assert pruner.layers[0].state["cut"] is cut  # the new cut lies where the old one was
    with torch.no_grad():
        for one in model.parameters():
            one.data.div_(2)
    if pattern == "2:4":
        with pytest.raises(RuntimeError, match="before the optimizer's step"):
            outputs.sum().backward()
    else:
        assert torch.equal(torch.autograd.grad(outputs.sum(), model[0].weight)[0], right)


def test_layers_without_a_gradient_stay_without_one():
    layers, rows = [], [(4, 6), (3, 5), (2, 9)]
    for shape in rows:
        weight = torch.randn(shape, generator=_random).requires_grad_()
        mask = torch.rand(shape[0], generator=_random)
        layers.append(units.Units(mask, steepness(mask, torch.tensor(0.3)), [weight], [True]))
    effective = units.joined(layers, units.mask_layers(layers))
    weights = [layer.tensors[0] for layer in layers]
    found = torch.autograd.grad(effective[0].sum() + effective[2].square().sum(), weights, allow_unused=True)
    assert found[1] is None
    for place in (0, 2):
        own = layers[place]
        (alone,) = mask_units(own.mask, own.steep, own.tensors, [None], [True], [torch.float32])
        loss = alone.square().sum() if place else alone.sum()
        torch.testing.assert_close(found[place], torch.autograd.grad(loss, weights[place])[0])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_another_default_type_does_not_change_how_replaced_weights_are_read(kind):
    found, before = [], torch.get_default_dtype()
    for default in (torch.float32, kind):
        weight = WEIGHTS[0].clone().requires_grad_()
        masks = SingleCuts([torch.tensor(0.05, dtype=torch.float32)], [1e-3])
        (effective,) = joined([weight], masks, effective_weights([weight], masks))
        weight.data = weight.data.double()
        torch.set_default_dtype(default)
        try:
            effective.backward(UPSTREAM[0])
        finally:
            torch.set_default_dtype(before)
        found.append(weight.grad.float())
    assert torch.equal(*found)
