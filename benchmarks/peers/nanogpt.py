"""GPT-2 and its loop as nanoGPT has them (Karpathy 2022), written anew for this comparison.

Its default on a CPU is fp32 without the compiler and AdamW that is not fused; on a GPU autocast to
bf16, the whole model compiled, and fused AdamW. Gradients are clipped, weights of two and more
dimensions decay, embeddings and output matrix are one.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import BETAS, LR, MAX_GRAD_NORM, WEIGHT_DECAY, Work, first_weights
from model.config import ModelConfig


class Attention(nn.Module):
    """Causal attention, queries, keys and values from one map."""

    def __init__(self, d: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias), nn.Linear(d, d, bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (
            part.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(d, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, d))


class Mlp(nn.Module):
    """Up, exact GELU, down; GPT-2 itself has tanh's approximation, which is near it and slower."""

    def __init__(self, d: int, bias: bool) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(d, 4 * d, bias), nn.Linear(4 * d, d, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then MLP, each on a norm of the residual stream."""

    def __init__(self, d: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(d, bias=bias), Attention(d, heads, bias)
        self.ln_2, self.mlp = nn.LayerNorm(d, bias=bias), Mlp(d, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """GPT-2 with tied matrices; names as in Hugging Face's files.

    bias: as OpenAI's models have them; nanoGPT's own, trained from scratch, have none.
    """

    def __init__(self, config: ModelConfig, *, bias: bool = True) -> None:
        super().__init__()
        d = config.d_model
        self.wte, self.wpe = nn.Embedding(config.vocab_size, d), nn.Embedding(config.max_seq_len, d)
        self.h = nn.ModuleList(Block(d, config.n_heads, bias) for _ in range(config.n_layers))
        self.ln_f = nn.LayerNorm(d, bias=bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def initialise(net: Gpt) -> None:
    """Draw new weights as nanoGPT does: GPT-2's deviations, what writes to the residual less."""
    for name, parameter in net.named_parameters():
        if parameter.dim() >= 2:
            is_last = name.endswith("c_proj.weight")
            nn.init.normal_(parameter, std=0.02 / (2 * len(net.h)) ** (0.5 * is_last))
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)


def decaying(net: Gpt, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups: of two and more dimensions all decay, and nothing else."""
    return [
        {
            "params": [p for p in net.parameters() if (p.dim() >= 2) == decays],
            "weight_decay": weight_decay * decays,
        }
        for decays in (True, False)
    ]


def _load(net: Gpt, state: dict[str, Tensor]) -> None:
    maps = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored the other way round
    names = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    names.pop("lm_head.weight", None)
    net.load_state_dict({n: t.T if n.endswith(maps) else t for n, t in names.items()})


def loop(work: Work, options: dict[str, Any], orders: Orders, device: torch.device) -> None:
    """Step as nanoGPT's train.py does."""
    orders.imported(compiles=options["compile"])
    net = Gpt(work.config())
    _load(net, first_weights(options["weights"]))
    net.to(device)
    run = torch.compile(net) if options["compile"] else net
    optimizer = torch.optim.AdamW(
        decaying(net, WEIGHT_DECAY), lr=LR, betas=BETAS, fused=options["fused"] or None
    )
    is_mixed = options["precision"] == "bf16"
    context = torch.autocast(device.type, torch.bfloat16) if is_mixed else contextlib.nullcontext()
    number = 0
    orders.ready()
    while orders.wanted():
        with context:
            loss = run(*work.batch(number, device))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        orders.done(loss.detach())
