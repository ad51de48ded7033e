"""Lion by itself; under ZeRO: runtime.selftest, test_reshard.py and test_zero_wide.py."""

import math
from typing import Any

import pytest
import torch

from runtime import lion
from runtime.optim import build_optimizer, state_keys
from runtime.sections import Optim

OPTIM = Optim(name="lion", lr=0.02, betas=(0.9, 0.99))
DECAY = 0.3


def new_parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,), (11,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def new_optimizer(parameters: list[torch.nn.Parameter]) -> Any:
    groups = [
        {"params": parameters[:1], "weight_decay": DECAY},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    return build_optimizer(groups, OPTIM)


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def trained(steps: int) -> tuple[Any, list[torch.nn.Parameter]]:
    parameters = new_parameters()
    optimizer = new_optimizer(parameters)
    for step in range(steps):
        give_gradients(parameters, step)
        optimizer.step()
    return optimizer, parameters


def contents(optimizer: Any, parameters: list[torch.nn.Parameter]) -> list[bytes]:
    tensors = [t for p in parameters for t in (p.detach(), *optimizer.state[p].values())]
    return [t.numpy().tobytes() for t in tensors]


def test_steps_are_those_of_algorithm_2() -> None:
    _, found = trained(6)
    wanted = [p.detach().double() for p in new_parameters()]
    momenta = [torch.zeros_like(w) for w in wanted]
    for step in range(6):
        give_gradients(found, step)
        for i, (decay, p) in enumerate(zip((DECAY, 0.0, 0.0), found, strict=True)):
            assert p.grad is not None
            update = torch.sign(0.9 * momenta[i] + 0.1 * p.grad)
            wanted[i] = wanted[i] - 0.02 * (update + decay * wanted[i])
            momenta[i] = 0.99 * momenta[i] + 0.01 * p.grad
    for p, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=1e-6)


def test_it_is_stepped_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(*trained(3))
    monkeypatch.setattr(lion, "CHUNK", 4)
    optimizer, parameters = trained(3)
    assert contents(optimizer, parameters) == whole
    sizes = [[len(p.weight) for p in b] for b in lion._batches(optimizer._pieces(parameters))]
    assert max(map(sum, sizes)) == 4
    assert len(sizes) > 10


@pytest.mark.parametrize("steps", [0, 3])
def test_a_step_that_was_found_not_finite_changes_no_bit(steps: int) -> None:
    optimizer, parameters = trained(steps)
    weights = [p.detach().clone() for p in parameters]
    before = contents(optimizer, parameters)
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
            assert [optimizer.state[p][key].shape for key in state_keys(group)] == [p.shape]
            assert float(optimizer.state[p]["step"]) == steps
    optimizer.found_inf = torch.zeros(())
    give_gradients(parameters, steps)
    optimizer.step()
    assert contents(optimizer, parameters) == contents(*trained(steps + 1))


def test_the_square_norms_are_those_of_the_step_and_change_nothing() -> None:
    optimizer, parameters = trained(2)
    before = [p.detach().double() for p in parameters]
    optimizer.is_measured = True
    give_gradients(parameters, 2)
    optimizer.step()
    assert contents(optimizer, parameters) == contents(*trained(3))
    for p, old in zip(parameters, before, strict=True):
        update, norm = optimizer.squares[p].tolist()
        assert norm == pytest.approx(old.square().sum().item(), rel=1e-6)
        want = (p.detach().double() - old).square().sum().item()
        assert update == pytest.approx(want, rel=1e-5)


def test_padding_is_neither_stepped_nor_measured() -> None:
    flat = torch.nn.Parameter(torch.cat([torch.ones(5), torch.full((3,), math.nan)]))
    optimizer: Any = build_optimizer([{"params": [flat], "weight_decay": 0.0}], OPTIM)
    optimizer.attach({flat: [(0, 2), (2, 3)]})
    optimizer.is_measured = True
    flat.grad = torch.full((8,), math.nan)
    flat.grad[:5] = torch.tensor([1.0, -1.0, 0.0, 2.0, 3.0])
    optimizer.step()
    assert optimizer.squares[flat].tolist() == pytest.approx([4 * 0.02**2, 5.0], rel=1e-5)
    moved = torch.tensor([0.98, 1.02, 1.0, 0.98, 0.98])
    torch.testing.assert_close(flat.detach()[:5], moved)
    assert not optimizer.state[flat]["momentum_buffer"][5:].any()
