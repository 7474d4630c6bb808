import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from pdp.tasks.sampling import (
    EpochBatchSampler,
    balanced_limit,
    hashed,
    permutation,
    set_epoch,
    stratified_split,
    uniforms,
)


def test_hash_is_splitmix64():
    # The first outputs of the published generator seeded with 0 are what a word of 0, and of the golden ratio, give.
    assert hashed(0)[0] == 0xE220A8397B1DCDAF
    assert hashed(-7046029254386353131)[0] == 0x6E789E6AA1B965F4


def test_uniforms_depend_on_seed_epoch_and_index_alone():
    indices = np.array([5, 0, 9])
    draws = uniforms(3, np.array([2, 2, 2]), indices, 4)
    assert draws.shape == (3, 4)
    np.testing.assert_array_equal(draws[2], uniforms(3, np.array([2]), np.array([9]), 4)[0])
    np.testing.assert_array_equal(draws[:, :2], uniforms(3, np.array([2, 2, 2]), indices, 2))
    many = uniforms(3, np.zeros(20_000, dtype=np.int64), np.arange(20_000), 3)
    assert many.min() >= 0 and many.max() < 1
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(many.T), np.eye(3), atol=0.03)
    for other in (uniforms(4, np.array([2]), indices[:1], 4), uniforms(3, np.array([1]), indices[:1], 4)):
        assert not np.isclose(other, draws[0]).any()


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    share=st.floats(0, 0.99),
    limit=st.integers(1, 100),
)
def test_split_and_limit_are_exact_and_in_proportion(counts, share, limit):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    kept, held = stratified_split(labels, share)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(held) == int(np.floor(share * len(labels) + 0.5))
    for label, count in enumerate(counts):
        assert abs((labels[held] == label).sum() - share * count) <= 1 + 1e-9
    chosen = labels[balanced_limit(labels, limit)]
    assert len(chosen) == min(limit, len(labels))
    got = np.bincount(chosen, minlength=len(counts))
    short = got < np.array(counts)
    assert not short.any() or got[short].min() >= got.max() - 1


@pytest.mark.parametrize(("count", "batch", "batches"), [(10, 4, 2), (8, 4, 2), (3, 4, 1)])
def test_an_epoch_is_a_permutation_without_a_short_batch_unless_it_is_the_only_one(count, batch, batches):
    sampler = EpochBatchSampler(count, batch, seed=1)
    sampler.set_epoch(6)
    keys = list(sampler)
    assert len(keys) == len(sampler) == batches
    assert [index for part in keys for _, index in part] == permutation(1, 6, count)[: batches * batch].tolist()
    assert {epoch for part in keys for epoch, _ in part} == {6}
    assert sorted(permutation(1, 6, count)) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_start_batch_counts_for_one_pass_and_survives_the_calls_accelerate_makes():
    sampler = EpochBatchSampler(12, 4, seed=0)
    sampler.set_epoch(2, 1)
    whole = EpochBatchSampler(12, 4, seed=0)
    whole.set_epoch(2)
    iter(sampler)  # as a loader with workers does: made, never drawn from
    sampler.set_epoch(0)
    assert list(sampler) == list(whole)[1:]
    sampler.set_epoch(1)
    assert list(sampler) == list(whole)
    sampler.set_epoch(2, 3)
    assert list(sampler) == []


def test_in_order_every_sample_once_and_the_short_batch_is_kept():
    assert list(EpochBatchSampler(5, 2)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


@pytest.mark.parametrize("seed", [None, 7])
def test_accelerate_splits_each_batch_over_ranks_and_repeats_nothing(seed):
    def ranks(start):
        shards = []
        for rank in range(2):
            sampler = EpochBatchSampler(11, 4, seed)
            shard = BatchSamplerShard(sampler, 2, rank, split_batches=True, even_batches=False)
            loader = torch.utils.data.DataLoader(range(11), batch_sampler=shard)
            set_epoch(loader, 3, start)
            shards.append(list(shard))
        return shards

    alone = EpochBatchSampler(11, 4, seed)
    alone.set_epoch(3)
    for start in (0, 1):
        first, second = ranks(start)
        second += [[]] * (len(first) - len(second))
        assert [a + b for a, b in zip(first, second, strict=True)] == list(alone)[start:]
