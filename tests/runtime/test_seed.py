import itertools

import torch

from runtime.seed import mix, seed_initialisation, seed_step


def draw() -> list[float]:
    return torch.rand(4).tolist()


def test_a_step_draws_the_same_however_it_was_reached() -> None:
    seed_step(1, 7, 0)
    first = draw()
    draw()
    seed_step(1, 7, 0)
    assert draw() == first


def test_seed_step_and_rank_all_matter() -> None:
    draws = []
    for parts in ((1, 7, 0), (2, 7, 0), (1, 8, 0), (1, 7, 1)):
        seed_step(*parts)
        draws.append(tuple(draw()))
    assert len(set(draws)) == 4


def test_mix_has_no_collisions_on_a_grid() -> None:
    grid = itertools.product(range(4), range(500), range(4))
    assert len({mix(seed, step, rank) for seed, step, rank in grid}) == 8000


def test_initialisation() -> None:
    seed_initialisation(3)
    first = draw()
    seed_initialisation(3)
    assert draw() == first
