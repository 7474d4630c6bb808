"""The CPU's compiled kernels against the formulas in float64, the readable definitions, and a sort."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_formulas import reference, reference_cut

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.kernels.cpu import masking
from pdp.kernels.cpu.cuts import Cuts
from pdp.kernels.cpu.joint import effective_weights, joined
from pdp.kernels.cpu.masks import SingleCuts, host_prune
from pdp.kernels.gpu import usable as usable_on_device
from pdp.masks import soft as mask
from pdp.masks.cut import count_pruned, magnitude_cuts_at
from pdp.masks.soft import soft_prune


def both(weight, cut, temperature, upstream):
    """Effective weight and gradient by the readable definition, then by the kernels."""
    for prune in (soft_prune, host_prune):
        mine = weight.clone().requires_grad_()
        effective = prune(mine, torch.as_tensor(cut), temperature)
        effective.backward(upstream)
        yield effective.detach(), mine.grad


_RANDOM = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=_RANDOM)


SHAPES = {
    "one": randn(1),
    "a few": randn(37) * 0.05,
    "a matrix": randn(64, 37) * 0.05,
    "for several threads": randn(260, 230, 3, 3) * 0.05,
    "odd, for several threads": randn(7, 93773) * 0.05,
    "channels last": (randn(20, 30, 3, 3) * 0.05).contiguous(memory_format=torch.channels_last),
    "zeros": torch.zeros(5),
    "huge": torch.tensor([1e-30, 1e19, 3e38, -3e38, 1e-38]),
}


@pytest.mark.parametrize("cut", [0.06, math.inf, -math.inf, 0.0, 1e18])
@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1e-24])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_and_gradient_equal_the_definition(shape, cut, temperature):
    weight = SHAPES[shape].clone()
    weight[(weight.abs() - cut).abs() < 1e-6 * cut] *= 2  # where the last bit decides at a temperature of nothing
    upstream = torch.randn_like(weight)
    (effective, slope), (found, found_slope) = both(weight, cut, temperature, upstream)
    assert host_kernels.usable(weight)
    assert found.stride() == weight.stride() and found_slope.stride() == weight.stride()
    # Two ways to round z of up to sixty differ by this much in its exponential.
    torch.testing.assert_close(found, effective, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(found_slope, slope, rtol=2e-4, atol=1e-5)


def test_they_are_as_near_to_the_formula_as_the_readable_operations():
    weight, upstream = torch.randn(600, 700) * 0.05, torch.randn(600, 700)
    mask, exact = reference(weight.numpy(), 0.06, 1e-3)
    errors = [
        (
            float(np.abs(effective.numpy() - mask * weight.numpy().astype(np.float64)).max()),
            float(np.abs(slope.numpy() - exact * upstream.numpy()).mean()),
        )
        for effective, slope in both(weight, 0.06, 1e-3, upstream)
    ]
    readable, compiled = errors
    assert compiled[0] < 1.5 * readable[0] and compiled[1] < 1.5 * readable[1]


def test_a_gradient_in_another_order_or_type_is_read_as_what_it_is():
    weight, upstream = torch.randn(12, 10) * 0.05, torch.randn(10, 12).T
    (_, slope), (_, found) = both(weight, 0.06, 1e-3, upstream)
    torch.testing.assert_close(found, slope, rtol=2e-4, atol=1e-5)
    weight = weight.requires_grad_()
    (found,) = torch.autograd.grad(host_prune(weight, torch.tensor(0.06), 1e-3).sum(), weight)
    (slope,) = torch.autograd.grad(soft_prune(weight, 0.06, 1e-3).sum(), weight)  # a gradient without a stride
    torch.testing.assert_close(found, slope, rtol=2e-4, atol=1e-5)


def test_what_is_no_number_stays_none():
    weight = torch.tensor([0.1, math.nan, math.inf, -math.inf] * 40)
    found = host_prune(weight, torch.tensor(0.05), 1e-4)
    torch.testing.assert_close(found, soft_prune(weight, 0.05, 1e-4), equal_nan=True)
    assert host_prune(weight, torch.tensor(math.nan), 1e-4).isnan().all()


def test_the_constants_are_those_of_the_definition():
    assert tuple(np.float32(value) for value in (mask.SATURATED, mask.NOTHING, mask.FARTHEST)) == (
        masking.SATURATED,
        masking.NOTHING,
        masking.FARTHEST,
    )


@pytest.mark.parametrize("together", [False, True])
def test_a_weight_that_was_given_other_data_since_has_the_same_gradient(together):
    found, drawn = [], [randn(40, 15), randn(30, 10)]
    for change in (lambda one: one, lambda one: one.double(), lambda one: one.bfloat16(), lambda one: one.T.clone().T):
        weights = [one.clone().requires_grad_() for one in drawn]
        if together:
            single = SingleCuts([torch.tensor(0.5)] * 2, [0.1] * 2)
            effective = joined(weights, single, effective_weights(weights, single))
        else:
            effective = [host_prune(one, torch.tensor(0.5), 0.1) for one in weights]
        loss = sum(one.square().sum() for one in effective)
        for one in weights:
            one.data = change(one.data)
        loss.backward()
        found.append([one.grad.float() for one in weights])
    for one, other, rough, transposed in zip(*found, strict=True):
        assert torch.equal(one, other) and torch.equal(one, transposed)
        torch.testing.assert_close(rough, one, rtol=0.1, atol=0.1)


def test_whether_they_run_is_not_decided_by_where_the_question_is_asked():
    with torch.inference_mode(), torch.device("meta"):
        assert host_kernels.found.__wrapped__() is not None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_another_default_type_does_not_change_what_is_tried_out(kind, monkeypatch):
    seen = []
    written = SingleCuts.write_effective
    watched = lambda *given: seen.extend(given[1]) or written(*given)  # noqa: E731
    monkeypatch.setattr(SingleCuts, "write_effective", watched)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        assert host_kernels.found.__wrapped__() is not None
    finally:
        torch.set_default_dtype(before)
    assert seen and all(one.dtype == torch.float32 for one in seen)


def test_a_weight_in_a_transform_is_not_asked():
    def not_usable(weight):
        assert not host_kernels.usable(weight)
        return weight.sum()

    for place in range(4):
        weight = torch.randn(3, 3, 3, 3)
        torch.testing.assert_close(
            torch.vmap(not_usable, in_dims=place)(weight), weight.movedim(place, 0).sum((1, 2, 3))
        )


def test_the_number_of_threads_changes_nothing():
    weight, upstream = torch.randn(1_000_001) * 0.05, torch.randn(1_000_001)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            weights, finder, cuts = [weight, weight[:600_000] * 2], Cuts([weight, weight[:600_000]]), []
            for _ in range(4):
                weights = [one * 1.0001 for one in weights]
                cuts.append(finder.find(weights, [900_000, 100_000]))
                assert torch.equal(cuts[-1], torch.stack(magnitude_cuts_at(weights, [900_000, 100_000])))
            found.append((*list(both(weight, 0.06, 1e-4, upstream))[1], *cuts))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.sampled_from([1, 2, 63, 64, 4096, 4097, 70_000]), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.sampled_from([0, 1e-6, 1e-4, 1e-2, 1]), st.floats(0, 1)), min_size=1, max_size=6),
    levels=st.sampled_from([None, 3, 1000]),
)
def test_cuts_equal_a_sort_however_weights_and_shares_move(seed, sizes, steps, levels):
    random = np.random.default_rng(seed)
    stored = [random.standard_normal(size).astype(np.float32) for size in sizes]
    finder = Cuts([torch.from_numpy(one) for one in stored])
    share = 0.9
    for step, change in steps:
        stored = [one + np.float32(step) * random.standard_normal(one.size).astype(np.float32) for one in stored]
        # With few levels most of a layer is tied.
        seen = [one if levels is None else (np.round(one * levels) / levels).astype(np.float32) for one in stored]
        share = change if step == 1 else share
        pruned = [count_pruned(share, size) for size in sizes]
        weights = [torch.from_numpy(one) for one in seen]
        assert finder.match(weights)
        found = finder.find(weights, pruned)
        for one, cut, count, by_definition in zip(seen, found, pruned, magnitude_cuts_at(weights, pruned), strict=True):
            assert float(cut) == pytest.approx(reference_cut(np.abs(one), count), rel=1e-6)
            assert torch.equal(cut, by_definition)


@pytest.mark.parametrize("kept", [1, 2, 30_000])
def test_a_cut_is_found_in_one_search_where_it_moves_as_before(kept, monkeypatch):
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    weight[0] = 40.0  # far from its neighbour, as the last weight that is kept may be
    finder, searched = Cuts([weight]), []
    search = finder._search
    monkeypatch.setattr(finder, "_search", lambda *all_of_it: (searched.append(all_of_it[2].any()), search(*all_of_it)))
    for _ in range(6):
        weight.mul_(1.0001)
        finder.find([weight], [100_000 - kept])
    # One that finds it, and nothing left for one with wider bounds.
    assert searched[-4:] == [True, False] * 2
    weight.mul_(1.001)
    (cut,) = finder.find([weight], [100_000 - kept])
    assert searched[-2:] == [True, True]  # farther than before: wider bounds
    assert cut == magnitude_cuts_at([weight], [100_000 - kept])[0]


def test_more_weights_near_the_cut_than_there_is_room_for_are_cut_as_well():
    weight = 1 + torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 5e-4
    finder = Cuts([weight])
    for _ in range(5):
        weight = weight * 1.00001
        for pruned in (20_000, 20_003):
            assert finder.find([weight], [pruned])[0] == magnitude_cuts_at([weight], [pruned])[0]


@pytest.mark.parametrize("size", [100, 5000, 70_000])
def test_a_layer_without_enough_numbers_has_no_cut_and_the_next_one_is_exact(size):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    broken, finder = weight.clone(), Cuts([weight])
    broken[: size * 6 // 10] = math.nan  # more than are kept
    for _ in range(3):
        finder.find([weight], [size // 2])
    assert finder.find([broken], [size // 2]).isnan().all()
    for moved in (weight, weight * 1.0001):
        assert finder.find([moved], [size // 2])[0] == magnitude_cuts_at([moved], [size // 2])[0]


def test_weights_of_other_kinds_are_left_to_the_definitions():
    dense = torch.randn(8, 8)
    for other in (dense.double(), dense.bfloat16(), torch.randn(8, 9)[:, :8], dense.expand(2, 8, 8)):
        assert not host_kernels.usable(other)
    assert host_kernels.usable(dense) and host_kernels.usable(torch.nn.Parameter(dense))
    assert not usable_on_device(dense)


def trained(steps=12):
    """Cuts, effective weights and stored ones of a small training."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3))
    pruner = Pruner(model, sparsity=0.8, epochs=steps, steps_per_epoch=1, schedule={"warmup": "1ep", "rate": 0.2})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, cuts = torch.randn(32, 40), []
    for epoch in range(steps):
        pruner.start_epoch(epoch)
        cuts += [layer.state["cut"].item() for layer in pruner.layers if "cut" in layer.state]
        model(inputs).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    return cuts, [one.detach().clone() for one in model.parameters()]


def test_a_training_with_them_is_the_training_without(monkeypatch):
    kernels, used = host_kernels.found(), []
    counted = {
        "prune": lambda *given: used.append("prune") or kernels.prune(*given),
        "effective": lambda *given: used.append("effective") or kernels.effective(*given),
        "cuts": lambda *given: used.append("cuts") or kernels.cuts(*given),
    }
    with monkeypatch.context() as patched:
        patched.setattr(host_kernels, "found", lambda: kernels._replace(**counted))
        cuts, weights = trained()
    assert (
        used.count("effective") == 11 and used.count("cuts") > 11
    )  # as what is counted is no class, one for each step
    monkeypatch.setattr(host_kernels, "found", lambda: None)
    plain_cuts, plain_weights = trained()
    assert len(cuts) > 10
    torch.testing.assert_close(torch.tensor(cuts), torch.tensor(plain_cuts), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights, plain_weights, rtol=1e-3, atol=1e-6)


FORKED = """
import os, sys, torch
from pdp import Pruner
from pdp.kernels.cpu import usable
SIZE = 1500  # large enough for several threads
model = torch.nn.Linear(SIZE, SIZE)
pruner = Pruner(model, sparsity=0.5, epochs=4, schedule={"warmup": "0ep", "rate": 0.5})
pruner.start_epoch(0)
model(torch.ones(SIZE)).sum().backward()
assert usable(model.weight)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # PyTorch's own operations have no threads in a fork
    pruner.start_epoch(1)
    model(torch.ones(SIZE)).sum().backward()
    os._exit(0 if usable(model.weight) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

WITHOUT = """
import sys
sys.modules["numba"] = None
import torch
from pdp import Pruner
from pdp.kernels.cpu import usable
assert not usable(torch.ones(3))
model = torch.nn.Linear(8, 8)
pruner = Pruner(model, sparsity=0.5, epochs=4, schedule={"warmup": "1ep", "rate": 0.5})
for epoch in range(4):
    pruner.start_epoch(epoch)
    model(torch.ones(8)).sum().backward()
pruner.finalize()
assert (model.weight == 0).sum() == 32
"""

ALONE = """
import sys, torch
from pdp import Pruner
from pdp.kernels.cpu import usable
model = torch.nn.Linear(8, 8)
pruner = Pruner(model, sparsity=0.5, epochs=4, schedule={"warmup": "1ep", "rate": 0.5})
for epoch in range(4):
    pruner.start_epoch(epoch)
    model(torch.ones(8)).sum().backward()
    pruner.step()
pruner.finalize()
compiled = {name for name in sys.modules if name.startswith("pdp.kernels.cpu.")}
assert usable(torch.ones(3)) and "pdp.kernels.cpu.masking" in compiled
assert not compiled & {"pdp.kernels.cpu.grouping", "pdp.kernels.cpu.unit_masking", "pdp.kernels.cpu.choosing"}, compiled
"""

SWITCHED_OFF = """
import torch
from pdp.kernels.cpu import usable
assert not usable(torch.ones(3))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "environment"),
    [(FORKED, {}), (WITHOUT, {}), (ALONE, {}), (SWITCHED_OFF, {"NUMBA_DISABLE_JIT": "1"})],
    ids=["in a fork", "without Numba", "without the kernels that nothing needs", "with Numba switched off"],
)
def test_it_works(script, environment):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [("found", "cuts"), ("found_groups", "groups"), ("found_units", "units")])
def test_where_they_cannot_run_one_warning_says_so(kind, monkeypatch):
    name, module = kind
    host_kernels.found()
    monkeypatch.delattr(host_kernels, module, raising=False)  # as if nothing had imported it yet
    monkeypatch.setitem(sys.modules, f"pdp.kernels.cpu.{module}", None)
    with pytest.warns(UserWarning, match="Numba's kernels do not run here, pruning goes on without: ") as told:
        assert getattr(host_kernels, name).__wrapped__() is None
    assert len(told) == 1


def test_numbers_of_many_cuts_are_those_of_the_definition():
    cuts = [0.0, 1e-30, 0.37, 3e20, math.inf, -math.inf, math.nan]
    pairs = [(float(np.float32(cut)), tau) for cut in cuts for tau in (1e-30, 1e-4, 1.0, 1e30)]
    single = SingleCuts([torch.tensor(cut) for cut, _ in pairs], [tau for _, tau in pairs])
    effective_weights([torch.ones(3) for _ in pairs], single)
    largest = torch.finfo(torch.float32).max / 4
    for (cut, tau), (offset, inverse) in zip(pairs, single.numbers.T.tolist(), strict=True):
        right = np.clip(np.float64(cut) * abs(cut) / -tau, -largest, largest)
        assert (offset, inverse) == pytest.approx((right, 1 / tau), rel=0, abs=0, nan_ok=True)
