"""Muon by itself: its iteration, its steps, and how matrices in pieces are shared out."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from runtime.muon import Matrices, Muon, _plan, orthogonalise
from runtime.optim import build_optimizer, state_keys
from runtime.sections import Optim
from tests.processes import run

SETTINGS: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95}


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (1, 40), (40, 1)])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, int], size: float) -> None:
    x = size * matrix(*shape)
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    made = orthogonalise(x[None])[0].double()
    inner = u.mT @ made @ v.mT  # diagonal where the singular vectors are those of x
    found = inner.diagonal()
    well_conditioned = s > 0.02 * s.norm()  # what is smaller takes more steps
    assert found[well_conditioned].min() > 0.66
    assert found.max() < 1.21
    assert (inner - torch.diag(found)).abs().max() < 1e-4
    assert (made - u @ inner @ v).abs().max() < 1e-4


def test_matrices_of_a_batch_do_not_mix_and_zeros_stay() -> None:
    batch = torch.stack([matrix(24, 16), 1e6 * matrix(24, 16, 1), torch.zeros(24, 16)])
    made = orthogonalise(batch)
    for x, y in zip(batch, made, strict=True):
        torch.testing.assert_close(orthogonalise(x[None])[0], y, rtol=1e-4, atol=1e-5)
    assert not made[2].any()
    assert orthogonalise(batch.bfloat16()).dtype == torch.bfloat16


def test_a_step_is_that_of_torchs_own_muon() -> None:
    """Which computes the iteration in bf16."""
    ours, theirs = (torch.nn.Parameter(matrix(48, 32)) for _ in range(2))
    groups = [{"params": [ours], "weight_decay": 0.3, "splits": [(48,)]}]
    optimizer = Muon(groups, **SETTINGS)
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        before = ours.detach().clone()
        ours.grad = matrix(48, 32, step + 1)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        peer.step()
        update, want = ours.detach() - before, theirs.detach() - before
        assert (update - want).norm() < 0.02 * want.norm() * (step + 1)


def test_updates_are_as_large_as_adamws() -> None:
    for shape in ((64, 64), (192, 64), (64, 192)):
        p = torch.nn.Parameter(torch.zeros(shape))
        optimizer = Muon([{"params": [p], "weight_decay": 0.1, "splits": [shape[:1]]}], **SETTINGS)
        p.grad = matrix(*shape)
        optimizer.step()
        rms = p.detach().square().mean().sqrt().item()
        assert rms == pytest.approx(0.2 * 0.02, rel=0.15)


def test_stacked_matrices_are_orthogonalised_one_by_one() -> None:
    stacked = torch.nn.Parameter(torch.zeros(40, 16))
    apart = [torch.nn.Parameter(torch.zeros(rows, 16)) for rows in (16, 16, 8)]
    gradient = matrix(40, 16)
    gradient[16:] *= 100
    stacked.grad = gradient
    for parameter, part in zip(apart, gradient.split((16, 16, 8)), strict=True):
        parameter.grad = part.clone()
    Muon([{"params": [stacked], "weight_decay": 0.1, "splits": [(16, 16, 8)]}], **SETTINGS).step()
    splits = [(16,), (16,), (8,)]
    Muon([{"params": apart, "weight_decay": 0.1, "splits": splits}], **SETTINGS).step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in apart]))
    assert stacked[:16].norm().item() == pytest.approx(stacked[16:32].norm().item(), rel=0.1)


@pytest.fixture
def mixed() -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """Matrices for Muon and a vector for AdamW, with gradients."""
    parameters = [torch.nn.Parameter(matrix(24, 16, 3)), torch.nn.Parameter(matrix(1, 16)[0])]
    groups = [
        {"params": parameters[:1], "weight_decay": 0.1, "splits": [(16, 8)]},
        {"params": parameters[1:], "weight_decay": 0.1},
    ]
    optimizer = build_optimizer(groups, Optim(name="muon", lr=0.02))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return optimizer, parameters


def contents(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> list[Any]:
    states = [dict(optimizer.state[p]) for p in parameters]
    tensors = [[p.detach(), *state.values()] for p, state in zip(parameters, states, strict=True)]
    return [(t.dtype, t.numpy().tobytes()) for group in tensors for t in group]


@pytest.mark.parametrize("steps", [0, 3])
def test_a_step_that_was_found_not_finite_changes_no_bit(mixed: Any, steps: int) -> None:
    optimizer, parameters = mixed
    for _ in range(steps):
        optimizer.step()
    weights = [p.detach().clone() for p in parameters]
    before = contents(optimizer, parameters)
    gradients = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = torch.full_like(p, math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(parameters, weights, strict=True))
    if steps:
        assert contents(optimizer, parameters) == before
    # What DeepSpeed links to after the first step is there, whatever that step was.
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert all(optimizer.state[p][key].shape == p.shape for key in state_keys(group))
            assert float(optimizer.state[p]["step"]) == steps
    optimizer.found_inf = torch.zeros(())
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    optimizer.step()
    assert not any(torch.equal(p, w) for p, w in zip(parameters, weights, strict=True))


def test_the_square_norms_are_those_of_the_step(mixed: Any) -> None:
    optimizer, (weight, _) = mixed
    optimizer.step()
    assert not optimizer.squares  # nobody has asked for them
    before = weight.detach().double()
    optimizer.is_measured = True
    optimizer.step()
    update, norm = optimizer.squares[weight].tolist()
    assert norm == pytest.approx(before.square().sum().item(), rel=1e-6)
    want = (weight.detach().double() - before).square().sum().item()
    assert update == pytest.approx(want, rel=1e-5)


def pieces_of(numel: int, ranks: int, begin: int, part: int) -> tuple[tuple[int, int], ...]:
    """What each rank holds of a parameter that begins at `begin` in a row cut every `part`."""
    bounds = [(r * part - begin, (r + 1) * part - begin) for r in range(ranks)]
    return tuple((min(max(a, 0), numel), min(max(b, 0), numel)) for a, b in bounds)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 3])
def test_every_matrix_is_made_once_by_plans_that_agree(stage: int, ranks: int) -> None:
    shapes = [((16, 8, 8), 16), ((16,), 16), ((40, 40), 16), ((16,), 40)] * 5
    row = sum(sum(rows) * columns for rows, columns in shapes)
    plans, totals = [], []
    for rank in range(ranks):
        placed, begin = [], 0
        for rows, columns in shapes:
            numel = sum(rows) * columns
            part = -(-row // ranks) if stage == 1 else -(-numel // ranks)
            held = pieces_of(numel, ranks, begin if stage == 1 else 0, part)
            placed.append(Matrices(rows, columns, held, 0))
            begin += numel
        work = [0] * ranks
        plans.append(_plan(placed, rank, work))
        totals.append(work)
    assert all(work == totals[0] for work in totals)
    # The busiest has at most the mean and the largest matrix to do.
    largest = 40 * 16 * 16
    assert max(totals[0]) <= sum(totals[0]) / ranks + largest
    made: Counter[tuple[int, int]] = Counter()
    for rank, plan in enumerate(plans):
        for batch in plan.own:
            made.update((m.rows, m.columns) for m in batch)
        for turn, first in zip(plan.turns, plans[0].turns, strict=True):
            mine, same = turn[rank], first[rank]
            assert (mine is None) == (same is None)
            if mine and same:
                assert mine.held == same.held
                made[mine.rows, mine.columns] += 1
    want = Counter((r, columns) for rows, columns in shapes for r in rows)
    assert made == want
    if stage == 1:
        assert len(plans[0].turns) <= 4  # only those on a cut travel


def test_pieces_that_do_not_make_a_whole_are_refused() -> None:
    with pytest.raises(AssertionError, match="hold a matrix once"):
        _plan([Matrices((4,), 4, ((0, 8), (0, 16)), 0)], 0, [0, 0])
    with pytest.raises(AssertionError, match="another order"):
        _plan([Matrices((4,), 4, ((8, 16), (0, 8)), 0)], 0, [0, 0])


def test_matrices_in_pieces_are_made_as_whole_ones() -> None:
    """Three ranks, cuts anywhere, many of the pieces empty."""
    status, output = run(["tests/runtime/muon_worker.py"], ranks=3)
    assert status == 0, output
    found = {line.split()[0]: line.split()[1:] for line in output.splitlines() if "torch." in line}
    for dtype, tolerance in (("torch.float32", 1e-4), ("torch.bfloat16", 0.2)):
        difference, empty = found[dtype]
        assert float(difference) < tolerance
        assert int(empty) > 20


def test_a_rank_that_holds_everything_does_not_make_everything() -> None:
    whole_here = [Matrices((16,), 16, ((0, 256), (256, 256)), 256 * i) for i in range(10)]
    work = [0, 0]
    plan = _plan(whole_here, 0, work)
    assert work[0] == work[1]
    assert sum(len(batch) for batch in plan.own) == len(plan.turns) == 5


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_bf16_it_steps_as_one_that_is_not_sharded(ranks: int) -> None:
    """In each stage and accumulation; both orthogonalise in bf16."""
    status, output = run(["tests/runtime/muon_bf16_worker.py"], ranks)
    assert status == 0, output
    lines = [line.split() for line in output.splitlines() if line.startswith("stage ")]
    assert len(lines) == 3 * 2
    for *case, weights, momenta in lines:
        assert float(weights) <= 1e-5, case
        assert float(momenta) <= 1e-5, case
