"""Does the engine train as plain PyTorch does? `python -m runtime.selftest`, or under a launcher.

Twelve steps at two learning rates of a small network with tied embeddings and a block that is used
twice (both have been computed wrongly by released versions of DeepSpeed), for every optimizer ×
ZeRO stage × precision × gradient accumulation, against one plain torch loop in fp32 over the whole
global batch. The loop's Muon takes singular values apart instead of multiplying matrices.
fp16 is among the precisions on a GPU alone: DeepSpeed refuses it on a CPU, and a line says so.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import DTYPES, Engine, StepResult
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.sections import Precision
from runtime.zero_layout import MASTER

STEPS = 12
PRECISIONS: dict[str, list[Precision]] = {
    "cpu": ["fp32", "bf16"],
    "cuda": ["fp32", "bf16", "fp16"],
}
SEQUENCES, SEQ_LEN, VOCAB, WIDTH = 8, 10, 37, 16
STACKED = (24, 16)  # rows of two matrices in one parameter
# ZeRO-3 keeps whole what is small, and what is used again soon: in a small network, everything.
PARTITION_ALL = {
    "zero_optimization": {
        "sub_group_size": 300,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}
# fp16 rounds to 11 bits where bf16 rounds to 8, and the loss scale keeps this network's gradients
# far from its least number: an eighth of bf16's, and half as much again for Lion, to which a
# momentum near zero that is rounded is a whole step. (On a CPU, in fp16_worker.py's way: 3.3e-4.)
TOLERANCE: dict[str, float] = {"fp32": 1e-6, "bf16": 5e-3, "fp16": 1e-3}
# The first loss scale, 65,536, is too high for some gradients. DeepSpeed skips what overflows, of
# which the reference knows nothing: it is taken again, and after 16 halvings nothing can overflow.
_MOST_TRIES = {"fp16": 20}

Optimizer = Literal["adamw", "muon", "lion"]
Stage = Literal[0, 1, 2, 3]


class Case(NamedTuple):
    """One engine configuration under test."""

    stage: Stage
    precision: Precision
    accumulation_steps: int
    optimizer: Optimizer = "adamw"
    offload: Literal["none", "optimizer", "all"] = "none"
    shard_ranks: int | None = None  # of hpZ
    grows: bool = False  # the first half of the steps take half of the batch
    compiles_update: bool = False  # the optimizer's passes are fused

    @property
    def lr(self) -> float:
        """Learning rate: Lion's steps are as long for every weight."""
        return _OPTIM.lr / 10 if self.optimizer == "lion" else _OPTIM.lr

    @property
    def parallel(self) -> sections.Parallel:
        """The same as a run's config says it."""
        return sections.Parallel(
            zero_stage=self.stage,
            offload=self.offload,
            sharding="full" if self.shard_ranks is None else "hpz",
            shard_ranks=self.shard_ranks,
        )

    def __str__(self) -> str:
        """In the words of its report."""
        return (
            f"{self.optimizer} {self.parallel} {self.precision} "
            f"accumulation {self.accumulation_steps}{' after half' * self.grows}"
            f"{' compiled' * self.compiles_update}"
        )

    def sequences(self, step: int) -> int:
        """How many there are in the global batch of a step."""
        return SEQUENCES // 2 if self.grows and step < STEPS // 2 else SEQUENCES


class Result(NamedTuple):
    """The largest relative differences from the reference."""

    case: Case
    loss: float
    weights: float
    grad_norm: float
    update_ratio: float

    @property
    def passed(self) -> bool:
        """Whether the losses, weights and updates agree within the precision's tolerance."""
        tolerance = TOLERANCE[self.case.precision]
        # The reference subtracts rounded weights: of one near 1 that is seen in a small update.
        return max(self.loss, self.weights, self.update_ratio / 4) <= tolerance


def cases(ranks: int, device_type: str = "cpu") -> list[Case]:
    """Every combination that the engine accepts on such ranks (ZeRO-0 in 16 bit is refused)."""
    precisions = PRECISIONS[device_type]
    optimizers: list[Optimizer] = ["adamw", "muon", "lion"]
    stages: list[Stage] = [0, 1, 2, 3]
    plain = [
        Case(stage, precision, accumulation, optimizer)
        for optimizer in optimizers
        for stage in stages
        for precision in (precisions if stage > 0 else precisions[:1])
        for accumulation in (1, 4)
    ]
    some = [case for case in plain if case.precision == "fp32" and case.accumulation_steps == 4]
    offloaded = [case._replace(offload="optimizer") for case in some if case.stage > 0]
    cut = [case for case in some if case.stage == 3]
    offloaded += [case._replace(offload="all") for case in cut]
    twice_cut = [case._replace(shard_ranks=2) for case in cut if ranks % 2 == 0]
    growing = [c._replace(grows=True) for c in some + offloaded if c.optimizer == "adamw"]
    several = [case for case in plain if case.accumulation_steps == 4]
    compiled = [c._replace(compiles_update=True) for c in several if _can_be_one_pass(c)]
    return plain + offloaded + twice_cut + growing + compiled


def _can_be_one_pass(case: Case) -> bool:
    is_scaled = case.precision == "fp16"  # by a loss scale, which the one pass leaves to DeepSpeed
    return case.optimizer == "adamw" and case.stage in (1, 2) and not is_scaled


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        # Two matrices in one parameter, and sizes that ZeRO cuts in the midst of others.
        inner = sum(STACKED)
        up, down, last = (
            nn.Linear(*sizes) for sizes in ((WIDTH, inner), (inner, WIDTH), (WIDTH,) * 2)
        )
        self.block = nn.Sequential(nn.LayerNorm(WIDTH), up, nn.GELU(), down, last)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = x + self.block(x)
        x = x + self.block(x)  # the same module twice
        return F.linear(self.norm(x), self.embedding.weight)  # tied


def _new_net(precision: Precision) -> _Net:
    torch.manual_seed(1)
    net = _Net()
    with torch.no_grad():
        for parameter in net.parameters():  # both sides start from representable weights
            parameter.copy_(parameter.to(DTYPES[precision]).float())
    return net


def _batch(step: int, sequences: int = SEQUENCES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCAB, (sequences, SEQ_LEN), generator=generator)


def _loss(net: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = net(ids[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _weighted_loss(weight: float) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    return lambda net, ids: _loss(net, ids) * weight


_OPTIM = sections.Optim(lr=1e-2, max_grad_norm=1.0)


def _groups(net: nn.Module, optimizer: Optimizer = "adamw") -> list[dict[str, Any]]:
    parameters: dict[str, list[nn.Parameter]] = {"muon": [], "matrices": [], "vectors": []}
    splits = {"block.1.weight": STACKED, "block.3.weight": (WIDTH,), "block.4.weight": (WIDTH,)}
    for name, parameter in net.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # of one that is in parts already
        is_hidden = optimizer == "muon" and name in splits
        kind = "muon" if is_hidden else "matrices" if len(shape) >= 2 else "vectors"
        parameters[kind].append(parameter)
    muon = {
        "params": parameters["muon"],
        "weight_decay": 0.1,
        "lr_scale": 0.5,
        "splits": list(splits.values()),
    }
    return [
        *([muon] if optimizer == "muon" else []),
        {"params": parameters["matrices"], "weight_decay": 0.1},
        {"params": parameters["vectors"], "weight_decay": 0.0, "lr_scale": 0.25},
    ]


class _Reference(NamedTuple):
    losses: list[float]
    norms: list[float]
    update_ratios: list[float]
    weights: dict[str, torch.Tensor]


def _reference(case: Case) -> _Reference:
    net = _new_net(case.precision)
    groups = _groups(net, case.optimizer)
    for group in groups:
        group["lr"] = case.lr * group.get("lr_scale", 1.0)
    step_all = _plain_lion(groups) if case.optimizer == "lion" else _plain_muon_or_adamw(groups)
    losses, norms, ratios = [], [], []
    for step in range(STEPS):
        loss = _loss(net, _batch(step, case.sequences(step)))
        net.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(net.parameters(), _OPTIM.max_grad_norm)
        before = _flat(net)
        step_all()
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        ratios.append(float((_flat(net) - before).norm() / before.norm()))
    weights = {name: p.detach().flatten() for name, p in net.named_parameters()}
    return _Reference(losses, norms, ratios, weights)


def _plain_muon_or_adamw(groups: list[dict[str, Any]]) -> Callable[[], None]:
    muon = groups.pop(0) if "splits" in groups[0] else {"params": [], "splits": []}
    momenta = [torch.zeros_like(p) for p in muon["params"]]
    optimizer = torch.optim.AdamW(groups, betas=_OPTIM.betas, eps=_OPTIM.eps)

    def step() -> None:
        optimizer.step()
        for parameter, momentum, rows in zip(muon["params"], momenta, muon["splits"], strict=True):
            _plain_muon_step(parameter, momentum, rows, muon)

    return step


def _plain_lion(groups: list[dict[str, Any]]) -> Callable[[], None]:
    """Lion as it is written down (Chen et al. 2023, algorithm 2)."""
    beta1, beta2 = _OPTIM.betas
    momenta = {p: torch.zeros_like(p) for group in groups for p in group["params"]}

    @torch.no_grad()
    def step() -> None:
        for group in groups:
            for p in group["params"]:
                update = torch.sign(beta1 * momenta[p] + (1 - beta1) * p.grad)
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
                momenta[p] = beta2 * momenta[p] + (1 - beta2) * p.grad

    return step


@torch.no_grad()
def _plain_muon_step(
    parameter: nn.Parameter, momentum: torch.Tensor, rows: tuple[int, ...], group: dict[str, Any]
) -> None:
    """Muon as it is written down (Jordan et al. 2024; scaled as in Liu et al. 2025, equation 4)."""
    assert parameter.grad is not None
    momentum.mul_(0.95).add_(0.05 * parameter.grad)
    looked_ahead = 0.95 * momentum + 0.05 * parameter.grad
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    for weight, matrix in zip(
        torch.split(parameter, list(rows)), torch.split(looked_ahead, list(rows)), strict=True
    ):
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        scale = 0.2 * math.sqrt(max(matrix.shape))
        weight.sub_(group["lr"] * scale * (u * s) @ v)


def _flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


def run_case(case: Case, ranks: dist.Ranks) -> Result:
    """Train one configuration and compare it with the reference. Collective."""
    net = _new_net(case.precision).to(ranks.device)
    micro = SEQUENCES // ranks.world_size // case.accumulation_steps
    config = deepspeed_config(
        case.parallel,
        case.precision,
        micro_batch_size=micro,
        accumulation_steps=case.accumulation_steps,
        world_size=ranks.world_size,
        max_grad_norm=_OPTIM.max_grad_norm,
        device_type=ranks.device.type,
        extra=PARTITION_ALL,
    )
    settings = _OPTIM.model_copy(update={"name": case.optimizer})
    optimizer = build_optimizer(_groups(net, case.optimizer), settings)
    engine = Engine(net, optimizer, config, ranks, compiles_update=case.compiles_update)
    results = [_train_step(engine, case, step, micro) for step in range(STEPS)]
    want = _reference(case)
    return Result(
        case,
        loss=_largest_difference([r.loss for r in results], want.losses),
        weights=_weight_difference(engine, want.weights),
        grad_norm=_largest_difference([float(r.grad_norm) for r in results], want.norms),
        update_ratio=_largest_difference(
            [r.update_ratio or 0.0 for r in results], want.update_ratios
        ),
    )


def _train_step(engine: Engine, case: Case, step: int, micro: int) -> StepResult:
    """One step on this rank's part of the global batch; in fp16 at a scale that fits."""
    ranks, sequences = engine.ranks, case.sequences(step)
    local = sequences // ranks.world_size
    mine = _batch(step, sequences)[ranks.rank * local :][:local].to(ranks.device)
    batches, loss = torch.split(mine, micro), _weighted_loss(micro / sequences)
    for _ in range(_MOST_TRIES.get(case.precision, 1)):
        result = engine.train_step(batches, loss, case.lr, measure_update=True)
        if result.applied:
            break
    return result


def _largest_difference(found: list[float], want: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(found, want, strict=True))


def _weight_difference(engine: Engine, want: dict[str, torch.Tensor]) -> float:
    """‖ours − reference‖ ÷ ‖reference‖ over all master weights, from every rank's slices."""
    difference = covered = 0.0
    for name, key, start, tensor in engine.optimizer_slices():
        if key == MASTER:
            expected = want[name][start : start + tensor.numel()]
            difference += float((tensor.detach().cpu().double() - expected.double()).square().sum())
            covered += tensor.numel()
    difference, covered = dist.sum_over_ranks([difference, covered])
    assert covered == sum(t.numel() for t in want.values()), "the slices don't cover the weights"
    norm = sum(float(t.double().square().sum()) for t in want.values())
    return float((difference / norm) ** 0.5)


def main() -> int:
    """Run every case; exit status 1 if any differs."""
    ranks = dist.init("auto", timeout_s=120)
    failed, device_type = 0, ranks.device.type
    left_out = [p for p in PRECISIONS["cuda"] if p not in PRECISIONS[device_type]]
    if ranks.is_main and left_out:
        print(f"left out: {', '.join(left_out)}, which does not run on a CPU", flush=True)
    for case in cases(ranks.world_size, device_type):
        result = run_case(case, ranks)
        failed += not result.passed
        if ranks.is_main:
            verdict = "ok  " if result.passed else "FAIL"
            print(
                f"{verdict} ranks {ranks.world_size} {case}: loss {result.loss:.1e}, "
                f"weights {result.weights:.1e}, gradient norm {result.grad_norm:.1e}, "
                f"update ratio {result.update_ratio:.1e}",
                flush=True,
            )
    dist.shutdown()
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
