"""litgpt's GPT, stepped as its pretrain.py does: Fabric, torch.compile, chunked cross entropy."""

from typing import Any

import lightning as L
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from torch import Tensor

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import BETAS, LR, MAX_GRAD_NORM, WEIGHT_DECAY, Work, first_weights

_PRECISION = {"bf16": "bf16-mixed", "bf16-true": "bf16-true", "fp32": "32-true"}


def _config(work: Work) -> Config:
    config = work.config()
    return Config(
        block_size=work.seq_len,
        n_layer=config.n_layers,
        n_embd=config.d_model,
        n_head=config.n_heads,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.vocab_size,
        norm_class_name="RMSNorm",
        norm_eps=config.norm_eps,
        parallel_residual=False,
        rotary_percentage=1.0,
        rope_base=int(config.rope_theta),
        bias=False,
        mlp_class_name="LLaMAMLP",
        intermediate_size=config.d_ff,
    )


def _state(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Hugging Face's names → litgpt's."""
    found = {
        "transformer.wte.weight": theirs["model.embed_tokens.weight"],
        "transformer.ln_f.weight": theirs["model.norm.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }
    pairs = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for layer in range(layers):
        ours, other = f"transformer.h.{layer}", f"model.layers.{layer}"
        for name, source in pairs.items():
            found[f"{ours}.{name}.weight"] = theirs[f"{other}.{source}.weight"]
        found[f"{ours}.attn.qkv.weight"] = torch.cat(
            [theirs[f"{other}.self_attn.{part}_proj.weight"] for part in "qkv"]
        )
    return found


def loop(work: Work, options: dict[str, Any], orders: Orders, device: torch.device) -> None:
    """Step as litgpt's `fit` does."""
    orders.imported(compiles=options["compile"])
    kind = "gpu" if device.type == "cuda" else "cpu"
    fabric = L.Fabric(
        accelerator=kind,
        devices=1,
        strategy="auto",
        precision=_PRECISION[options["precision"]],
    )
    with fabric.init_module(empty_init=False):
        net = GPT(_config(work))
    net.load_state_dict(_state(first_weights(options["weights"]), work.config().n_layers))
    run = fabric.setup(torch.compile(net) if options["compile"] else net)
    optimizer = fabric.setup_optimizers(
        instantiate_torch_optimizer(
            "AdamW",
            run.parameters(),
            lr=LR,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=options["fused"],
        )
    )
    number = 0
    orders.ready()
    while orders.wanted():
        inputs, targets = work.batch(number, device)
        loss = chunked_cross_entropy(run(inputs), targets)
        fabric.backward(loss)
        fabric.clip_gradients(run, optimizer, max_norm=MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        number += 1
        orders.done(loss.detach())
