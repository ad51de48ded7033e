"""A step without DeepSpeed, for machines that lack it: the same model, compiled as in a run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sweep.models import Model
from benchmarks.sweep.prepared import Prepared, Variant, draw
from model import attention_backends, float8
from model.heads import LanguageModel
from model.init import parameter_groups
from runtime.one_pass import update
from runtime.sections import Optim

_OPTIM = Optim()


def bare_step(model: Model, variant: Variant, device: torch.device, why: str) -> Prepared:
    """Build the model, its flat weights and a batch; `why` there is no engine.

    Set up as `pretrain.build.build_engine` does. Raises ImportError where kernels or FP8 lack a
    package.
    """
    torch.manual_seed(0)
    config, problem = model.config(), _why_not_compiled(device)
    net = draw(device, config, head=model.head)
    assert isinstance(net, LanguageModel)
    net.trunk.set_recompute(variant.recompute)
    net.set_kernels(variant.kernels)
    if model.precision == "fp8":
        float8.use_in(net.trunk, emulate=device.type == "cpu")
    net.trunk.splits_documents = problem is not None
    net.compiles_loss = problem is None
    for block in net.trunk.blocks if problem is None else ():
        block.forward = torch.compile(block.forward)
    choice = attention_backends.choose(
        "auto",
        attention_backends.Machine.here(device),
        config,
        torch.bfloat16,
        packs_documents=model.document > 0,
    )
    attention_backends.use(choice)
    net.trunk.attends_varlen = choice.backend in ("auto", "flash")
    net.trunk.attends_flex = choice.backend == "flex"
    groups = [_Flat(group) for group in parameter_groups(net, _OPTIM.weight_decay)]
    net.to(torch.bfloat16)  # what is no parameter
    batch = model.batch(variant.batch_size, device)
    one_pass: Callable[..., None] = update if problem else torch.compile(update, dynamic=True)
    told = {"engine": f"none, without DeepSpeed ({why})", "compiled": problem or "yes"}
    told["attention"] = choice.told
    return Prepared(lambda: _step(net, batch, groups, one_pass), net, batch, told)


class _Flat:
    """A group's weights, moments and gradients, each in one piece as ZeRO-1 has them."""

    def __init__(self, group: dict[str, Any]) -> None:
        parameters: list[nn.Parameter] = group["params"]
        self.decay, self.lr, self.steps = group["weight_decay"], _OPTIM.lr * group["lr_scale"], 0
        self.weight = torch.cat([p.detach().flatten() for p in parameters])  # (n,) fp32
        self.low = self.weight.to(torch.bfloat16)
        self.gradient = torch.zeros_like(self.low)
        start = 0
        for p in parameters:
            place = slice(start, start + p.numel())
            p.data = self.low[place].view_as(p)
            p.grad = self.gradient[place].view_as(p)
            start = place.stop
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def factors(self, clip: Tensor) -> Tensor:
        """Those of the next step, as `update` wants them."""
        self.steps += 1
        beta1, beta2 = _OPTIM.betas
        rest = torch.tensor(
            [
                self.lr / (1 - beta1**self.steps),
                (1 - beta2**self.steps) ** 0.5,
                1 - self.lr * self.decay,
            ]
        )
        return torch.cat((clip[None], rest.to(clip.device, non_blocking=True)))


def _step(
    net: nn.Module, batch: dict[str, Tensor], groups: list[_Flat], one_pass: Callable[..., None]
) -> None:
    net(**batch).loss.backward()
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(g.gradient, dtype=torch.float32) for g in groups]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        clip = (_OPTIM.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        for g in groups:
            tensors = (g.weight, g.first, g.second, g.gradient, g.low)
            one_pass(*tensors, g.factors(clip), betas=_OPTIM.betas, eps=_OPTIM.eps)
            g.gradient.zero_()


def _why_not_compiled(device: torch.device) -> str | None:
    """Why torch.compile does not work here, in a line; None where it does."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(1000, device=device))
    except Exception as error:  # of whatever part: a compiler, its headers, Triton
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"no: {lines[0] if lines else type(error).__name__}"
    return None
