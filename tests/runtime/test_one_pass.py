"""AdamW under ZeRO in one pass: as DeepSpeed's own steps, whatever a step meets."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from runtime import dist, one_pass, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine
from runtime.one_pass import update
from runtime.optim import build_optimizer
from runtime.zero_gradients import joined

OPTIM = sections.Optim(name="adamw", lr=1e-2, weight_decay=0.3)


@pytest.fixture(scope="module")
def ranks() -> Iterator[dist.Ranks]:
    yield dist.init("cpu", timeout_s=60)
    dist.shutdown()


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiler reads the update, and torch's own kernels compute it."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def engine_of(
    ranks: dist.Ranks,
    *,
    compiles: bool,
    stage: Any = 1,
    precision: Any = "fp32",
    net: nn.Module | None = None,
    **optim: Any,
) -> Engine:
    torch.manual_seed(0)
    groups: list[dict[str, Any]] = []
    if net is None:
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        for dim, decay in ((2, 0.3), (1, 0.0)):
            matching = [p for p in net.parameters() if p.dim() == dim]
            groups.append({"params": matching, "weight_decay": decay})
    else:
        groups.append({"params": list(net.parameters()), "weight_decay": 0.3})
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        precision,
        micro_batch_size=4,
        accumulation_steps=2,
        world_size=1,
        max_grad_norm=optim.pop("max_grad_norm", 0.5),
        device_type="cpu",
    )
    optimizer = build_optimizer(groups, OPTIM.model_copy(update=optim))
    return Engine(net, optimizer, config, ranks, compiles_update=compiles)


def step(engine: Engine, number: int, *, scale: float = 1.0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(number)
    micro_batches = [torch.randn(4, 5, generator=generator) for _ in range(2)]
    dtype = next(engine.module.parameters()).dtype

    def loss_of(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return scale * net(x.to(dtype)).float().square().mean()

    return engine.train_step(micro_batches, loss_of, 1e-2 / (number + 1), **options)


def contents(engine: Engine) -> dict[str, torch.Tensor]:
    found = {f"{s[0]} {s[1]}": s[3].clone() for s in engine.optimizer_slices()}
    named = engine.module.named_parameters()
    return found | {name: p.detach().clone() for name, p in named}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_it_steps_as_deepspeed_does(
    stage: int, precision: str, max_grad_norm: float, ranks: dist.Ranks
) -> None:
    engines = [
        engine_of(ranks, compiles=on, stage=stage, precision=precision, max_grad_norm=max_grad_norm)
        for on in (False, True)
    ]
    for number in range(5):
        plain, ours = (step(e, number, scale=9, measure_update=True) for e in engines)
        assert float(ours.grad_norm) == pytest.approx(float(plain.grad_norm), rel=1e-6)
        assert ours.update_ratio == pytest.approx(plain.update_ratio, rel=1e-4)
        assert (ours.loss, ours.applied) == (pytest.approx(plain.loss, rel=1e-3), True)
    want, found = (contents(e) for e in engines)
    assert want.keys() == found.keys()
    for name, tensor in want.items():
        close = 1e-6 if tensor.dtype == torch.float32 and precision == "fp32" else 8e-3
        torch.testing.assert_close(found[name], tensor, rtol=close, atol=close)
    assert engines[1].optimizer_steps() == 5


@pytest.mark.parametrize("taken", [0, 2])
def test_a_refused_step_changes_nothing(taken: int, ranks: dist.Ranks) -> None:
    engine = engine_of(ranks, compiles=True)
    for number in range(taken):
        step(engine, number)
    before, steps = contents(engine), engine.optimizer_steps()
    assert not step(engine, taken, accept=lambda _: False).applied
    broken = step(engine, taken, scale=math.nan)
    assert (broken.applied, math.isfinite(float(broken.grad_norm))) == (False, False)
    after = contents(engine)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert engine.optimizer_steps() == steps
    assert step(engine, taken).applied
    assert engine.optimizer_steps() == steps + 1
    assert not torch.equal(contents(engine)["0.weight"], before["0.weight"])


def test_a_checkpoint_goes_from_one_to_the_other(ranks: dist.Ranks) -> None:
    writer, whole = (engine_of(ranks, compiles=True) for _ in range(2))
    for number in range(2):
        step(writer, number)
        step(whole, number)
    stored = {(s[0], s[1]): s[3].clone().flatten() for s in writer.optimizer_slices()}
    for compiles in (False, True):
        reader = engine_of(ranks, compiles=compiles)
        step(reader, 7)  # whatever it has
        reader.load_optimizer_slices(
            lambda name, key, start, numel: stored[name, key][start : start + numel], 2
        )
        step(reader, 2)
        assert reader.optimizer_steps() == 3
    step(whole, 2)
    want, found = contents(whole), contents(reader)
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


class Scalars(nn.Module):
    """Two parameters of one number each, among larger ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor([x])) for x in (2.0, 3.0))
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first * (x @ self.weight) + self.second * x.sum(-1)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("compiles", [False, True])
def test_the_gradient_of_a_single_number_is_its_own(
    stage: int, compiles: bool, ranks: dist.Ranks
) -> None:
    """Those are small enough for the bucket, where one takes the place of another."""
    ours, plain = Scalars(), Scalars()
    engine = engine_of(ranks, compiles=compiles, stage=stage, net=ours, max_grad_norm=0.0)
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=1e-2, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0.3
    )
    for number in range(3):
        step(engine, number)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (number + 1)
        generator = torch.Generator().manual_seed(number)
        for _ in range(2):
            plain(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            dict(ours.named_parameters())[name].detach(), parameter.detach(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("starts_inside", [False, True])
def test_one_compilation_for_gradients_of_all_sizes(
    starts_inside: bool, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones that are views, small ones put together; also of a rank whose first one is cut."""
    if starts_inside:

        def moved(gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            for number, flat in enumerate(joined(gradients)):
                yield torch.cat([flat.new_zeros(5), flat])[5:] if number == 0 else flat

        monkeypatch.setattr(one_pass, "joined", moved)
    net = nn.Sequential(nn.Linear(5, 20_000), nn.Linear(20_000, 10), nn.Linear(10, 3))
    engine = engine_of(ranks, compiles=True, net=net)
    for number in range(3):
        step(engine, number)
    assert counters["stats"]["unique_graphs"] == 1


def test_other_optimizers_step_as_before(ranks: dist.Ranks) -> None:
    kept = engine_of(ranks, compiles=True, name="lion")
    assert "step" not in vars(kept._engine.optimizer)
    assert "step" in vars(engine_of(ranks, compiles=True)._engine.optimizer)


def test_the_update_is_adamws_in_double_precision() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(2, 100).double()
    betas, eps, lr, decay = (0.8, 0.9), 1e-8, 0.1, 0.3
    theirs = nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    first, second, rounded = torch.zeros(3, 100).double()
    for steps in range(1, 4):
        theirs.grad = gradient * steps / 4
        optimizer.step()
        scalars = (
            1 / 4,
            lr / (1 - betas[0] ** steps),
            (1 - betas[1] ** steps) ** 0.5,
            1 - lr * decay,
        )
        factors = torch.tensor(scalars, dtype=torch.float64)
        update(weight, first, second, gradient * steps, rounded, factors, betas=betas, eps=eps)
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(rounded, weight)
