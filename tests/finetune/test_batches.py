import numpy as np
import pytest

from finetune.batches import Plan


def plan(count=101, batch=16, micro=4, seed=5, longest=60):
    lengths = np.random.default_rng(0).integers(1, longest, count)
    return Plan(lengths, batch, micro, seed)


def epoch(p, number):
    return [p.batch(number * p.steps_per_epoch + i) for i in range(p.steps_per_epoch)]


def test_an_epoch_holds_every_example_once_and_ends_with_the_small_batch():
    p = plan()
    for number in range(3):
        batches = epoch(p, number)
        assert [len(b) for b in batches] == [16] * 6 + [5]
        assert sorted(np.concatenate(batches)) == list(range(101))


def test_order_is_a_pure_function_of_seed_and_step():
    straight = [b.tolist() for n in range(3) for b in epoch(plan(), n)]
    jumping = plan()
    steps = np.random.default_rng(1).permutation(len(straight))
    assert all(jumping.batch(int(s)).tolist() == straight[s] for s in steps)
    per_epoch = len(straight) // 3
    assert straight[:per_epoch] != straight[per_epoch : 2 * per_epoch]
    assert plan(seed=6).batch(0).tolist() != straight[0]


def test_steps_do_not_depend_on_the_micro_batch_size():
    assert plan(micro=2).batch(4).tolist() == plan(micro=16).batch(4).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 6])  # 6: the last one of the epoch, smaller
def test_each_example_of_a_step_is_computed_once(world_size, step):
    p = plan()
    shares = [p.micro_batches(step, rank, world_size) for rank in range(world_size)]
    every = np.concatenate([b for share in shares for b in share])
    assert sorted(every) == sorted(p.batch(step))
    assert max(len(b) for share in shares for b in share) <= 4


def test_texts_of_like_length_are_together():
    """Padding of random batches, by count, against ours."""
    p = plan(count=4096, batch=32, micro=32)
    ours = sum(p.lengths[b].max() * len(b) - p.lengths[b].sum() for b in epoch(p, 0))
    order = np.random.default_rng(0).permutation(4096).reshape(-1, 32)
    random = sum(p.lengths[b].max() * 32 - p.lengths[b].sum() for b in order)
    assert ours < 0.2 * random


def test_the_longest_batch_may_come_at_any_step():
    p = plan(count=4096, batch=32, micro=32)
    means = [p.lengths[b].mean() for b in epoch(p, 0)]
    halves = np.mean(means[:64]), np.mean(means[64:])
    assert abs(halves[0] - halves[1]) < 6  # sorted, they would be 30 apart


def test_tokens_are_counted_without_padding():
    p = plan()
    assert p.tokens(3) == p.lengths[p.batch(3)].sum()
