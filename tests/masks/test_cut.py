"""Cuts and selections against a sort in float64, with ties, for every count."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mask_formulas import reference_cut

from pdp import find_cut
from pdp.errors import Refusal
from pdp.masks.cut import count_global, count_pruned, cut_at, keep_units, magnitude_cuts_at
from pdp.masks.host_cut import Trail, neighbours_between, sampled_bounds

# Few distinct values, so that ties at the cut are the rule.
tied = hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]))
free = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 100, width=32))


def reference_keep(values: np.ndarray, pruned: int) -> np.ndarray:
    keep = np.ones(values.size, dtype=bool)
    keep[np.argsort(values.reshape(-1), kind="stable")[:pruned]] = False
    return keep.reshape(values.shape)


@given(values=st.one_of(tied, free), share=st.floats(0, 1))
def test_cut_is_midway_for_any_share(values, share):
    pruned = math.floor(share * values.size + 0.5)
    assert float(find_cut(torch.from_numpy(values), share)) == pytest.approx(reference_cut(values, pruned), rel=1e-6)


@given(values=st.one_of(tied, free), data=st.data())
def test_exact_count_is_pruned_lowest_index_first(values, data):
    pruned = data.draw(st.integers(0, values.size))
    keep = keep_units(torch.from_numpy(values), pruned).numpy()
    assert (~keep).sum() == pruned
    np.testing.assert_array_equal(keep, reference_keep(values, pruned))


@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)),
        elements=st.sampled_from([0.0, 0.5, 0.5, 2.0]),
    ),
    share=st.floats(0, 1),
    dim=st.integers(-3, 2),
)
def test_one_cut_for_each_slice_along_dim(values, share, dim):
    cuts = find_cut(torch.from_numpy(values), share, dim=dim).numpy()
    pruned = math.floor(share * values.shape[dim] + 0.5)
    expected = np.apply_along_axis(lambda one: reference_cut(one, pruned), dim, values)
    np.testing.assert_allclose(cuts, expected.astype(np.float32), rtol=1e-6)


@given(values=st.lists(tied, min_size=1, max_size=5), share=st.floats(0, 1))
def test_global_count_is_exact_and_empties_no_layer(values, share):
    total = sum(one.size for one in values)
    pruned = math.floor(share * total + 0.5)
    tensors = [torch.from_numpy(one) for one in values]
    if pruned > total - len(values):
        with pytest.raises(Refusal, match="sparsity="):
            count_global(tensors, pruned)
        return
    counts = count_global(tensors, pruned)
    assert sum(counts) == pruned
    assert all(0 <= count < one.size for count, one in zip(counts, values, strict=True))
    unprotected = count_global(tensors, pruned, least_kept=0)
    flat = reference_keep(np.concatenate(values), pruned)
    parts = np.split(flat, np.cumsum([one.size for one in values])[:-1])
    assert unprotected == [int((~part).sum()) for part in parts]
    if all(count < one.size for count, one in zip(unprotected, values, strict=True)):
        assert counts == unprotected


def test_channels_last_weights_are_read_in_logical_order():
    weight = torch.randint(0, 4, (8, 6, 3, 3)).float().to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    keep = keep_units(weight, 300)
    np.testing.assert_array_equal(keep.numpy(), reference_keep(weight.contiguous().numpy(), 300))
    assert magnitude_cuts_at([weight], [300])[0] == cut_at(weight.contiguous().abs(), 300)


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_together_equal_layers_alone(threads, request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) for size in (7, 1000, 33, 5000, 500_000, 20)]
    counts = [3, 900, 0, 4999, 470_000, 20]
    alone = [cut_at(weight.abs(), count) for weight, count in zip(weights, counts, strict=True)]
    assert magnitude_cuts_at(weights, counts) == alone
    assert [
        reference_cut(weight.abs().numpy(), count) for weight, count in zip(weights, counts, strict=True)
    ] == pytest.approx([float(cut) for cut in alone], rel=1e-6)


def test_half_precision_is_cut_in_float32():
    weight = torch.randn(500).bfloat16()
    assert find_cut(weight.abs(), 0.5).dtype == torch.float32
    assert magnitude_cuts_at([weight], [250])[0] == find_cut(weight.float().abs(), 0.5)


def test_double_precision_stays_double():
    values = torch.rand(101, dtype=torch.float64)
    assert float(find_cut(values, 0.3)) == reference_cut(values.numpy(), 30)


def test_more_numbers_than_a_quantile_takes():
    # torch.quantile refuses above 2^24 numbers; a permutation of known numbers has a known cut.
    units = 2**24 + 5
    values = torch.arange(units, dtype=torch.float64)[torch.randperm(units)]
    assert float(find_cut(values, 0.866)) == count_pruned(0.866, units) - 0.5


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    units=st.integers(2, 3000),
    share=st.floats(0, 1),
    levels=st.sampled_from([0, 1, 3, 40]),
    ordered=st.booleans(),
    magnitudes=st.booleans(),
)
def test_selecting_between_bounds_of_a_sample_is_exact_or_says_so(seed, units, share, levels, ordered, magnitudes):
    values = np.random.default_rng(seed).standard_normal(units).astype(np.float32)
    if levels:  # ties
        values = np.round(values * levels) / levels
    if ordered:  # what a sample in strides sees best, or worst
        values = np.sort(values)
    pruned = min(max(1, count_pruned(share, units)), units - 1)
    sorted_values = np.sort(np.abs(values) if magnitudes else values).astype(np.float64)
    before = values.copy()
    found = neighbours_between(values, pruned, magnitudes, sampled_bounds(values, pruned, magnitudes))
    assert found is None or found == (sorted_values[pruned - 1], sorted_values[pruned])
    assert (values == before).all()


def between_sampled(values, pruned):
    return neighbours_between(values.numpy(), pruned, True, sampled_bounds(values.numpy(), pruned, True))


def test_a_large_layer_is_cut_by_bounds_and_exactly_where_they_miss():
    weight = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0))
    periodic = torch.where(torch.arange(1 << 17) % 8 == 0, 1e-3, weight)  # all that a sample in strides of eight sees
    for pruned in (1, 2, 1000, 100_000, (1 << 17) - 2, (1 << 17) - 1):  # shares at which few or none are kept, too
        assert between_sampled(weight, pruned) is not None
    assert between_sampled(periodic, 100_000) is None
    for values in (weight, periodic):
        ordered = values.abs().sort().values
        expected = ordered[99_999] + (ordered[100_000] - ordered[99_999]) * 0.5
        assert magnitude_cuts_at([values], [100_000])[0] == expected == cut_at(values.abs(), 100_000)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    moves=st.lists(st.tuples(st.floats(1e-4, 2), st.floats(0, 1)), min_size=2, max_size=8),
)
def test_a_trail_changes_no_cut_however_weights_and_shares_move(seed, moves):
    # Large enough to be cut by bounds. The trail is led by small steps and astray by large ones.
    random, trail = np.random.default_rng(seed), Trail()
    values = random.standard_normal(6000).astype(np.float32)
    for step, share in moves:
        values += step * random.standard_normal(6000).astype(np.float32)
        pruned = count_pruned(share, 6000)
        (found,) = magnitude_cuts_at([torch.from_numpy(values)], [pruned], [trail])
        assert float(found) == pytest.approx(reference_cut(np.abs(values), pruned), rel=1e-6)


def test_a_trail_leads_to_the_next_cut_and_gives_way_where_it_leads_astray():
    weight = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0))
    trail = Trail()
    assert trail.bounds() is None
    for factor in (1, 1.001, 1.002):
        (cut,) = magnitude_cuts_at([weight * factor], [100_000], [trail])
    low, high = trail.bounds()
    among = ((weight.abs() >= low) & (weight.abs() <= high)).sum()
    assert low < cut < high and among < 2000  # of 131,072
    (far,) = magnitude_cuts_at([weight * 3], [100_000], [trail])
    assert float(far) == pytest.approx(reference_cut((weight * 3).abs().numpy(), 100_000), rel=1e-6)
    assert trail.bounds() is None  # after a leap the sample is asked again
    magnitude_cuts_at([weight * 3], [0], [trail])
    assert trail.bounds() is None


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_outside_are_refused(share):
    with pytest.raises(Refusal, match="share"):
        find_cut(torch.ones(3), share)


@settings(max_examples=30)
@given(values=tied, data=st.data())
def test_device_path_equals_host_path(values, data, monkeypatch_module):
    pruned = data.draw(st.integers(0, values.size))
    tensor = torch.from_numpy(values)
    host = keep_units(tensor, pruned), cut_at(tensor, pruned)
    with monkeypatch_module.context() as patch:
        patch.setattr("pdp.masks.cut._selects_on_host", lambda values: False)
        assert torch.equal(keep_units(tensor, pruned), host[0])
        assert torch.equal(cut_at(tensor, pruned), host[1])


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
