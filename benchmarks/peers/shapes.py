"""The models, the data and the first weights that all peers of a training step have in common."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import build, preset
from model.config import ModelConfig
from model.hf import to_hf_state
from runtime.seed import seed_initialisation

LR, BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, (0.9, 0.95), 0.1, 1.0


class Work(NamedTuple):
    """What one step computes."""

    family: str
    shape: dict[str, Any]  # of the family's smallest preset, what differs
    batch_size: int
    seq_len: int

    def config(self) -> ModelConfig:
        """The model."""
        small = {"gpt2": "gpt2-tiny", "llama": "llama-tiny"}[self.family]
        return preset(small, **self.shape)

    def batch(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of a step, skewed so that there is something to learn."""
        generator = torch.Generator().manual_seed(number)
        drawn = torch.rand(self.batch_size, self.seq_len + 1, generator=generator)
        ids = (drawn**4 * self.shape["vocab_size"]).long().to(device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


_GPT2_124M = {"n_layers": 12, "n_heads": 12, "d_model": 768, "vocab_size": 50304}
_GPT2_7M = {"n_layers": 6, "n_heads": 4, "d_model": 256, "vocab_size": 8192}
_DRY = {"n_layers": 2, "n_heads": 2, "d_model": 32, "vocab_size": 256}
# litgpt's GPT has neither learned positions nor tied matrices, so it meets a Llama that has none.
_UNTIED = {"n_kv_heads": None, "tie_embeddings": False}


def _pair(shape: dict[str, Any], batch_size: int, seq_len: int) -> dict[str, Work]:
    gpt2 = {**shape, "max_seq_len": seq_len}
    llama = {**gpt2, **_UNTIED, "n_kv_heads": shape["n_heads"], "d_ff": 8 * shape["d_model"] // 3}
    llama["d_ff"] = -(-llama["d_ff"] // 32) * 32
    return {
        "gpt2": Work("gpt2", gpt2, batch_size, seq_len),
        "llama": Work("llama", llama, batch_size, seq_len),
    }


SIZES: dict[str, dict[str, Work]] = {
    "6.9m": _pair(_GPT2_7M, 8, 256),
    "124m": _pair(_GPT2_124M, 32, 1024),
    "dry": _pair(_DRY, 2, 32),
}


def write_first_weights(work: Work, path: Path) -> None:
    """Draw weights and write them under Hugging Face's names."""
    seed_initialisation(0)
    net = build(work.config())
    state = to_hf_state(net.state_dict(), net.config)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def first_weights(path: Path) -> dict[str, Tensor]:
    """Those weights, fp32 on the host."""
    found: dict[str, Tensor] = load_file(path)
    return found
