"""The models whose steps are swept, and their batches."""

from typing import Any, NamedTuple

import torch

from model import preset
from model.config import ModelConfig
from model.heads import IGNORE_INDEX
from model.kernels import Kernels
from model.memory import Recompute

_GPT2 = {"vocab_size": 50304}


class Model(NamedTuple):
    """A model and what one step of it computes."""

    name: str
    preset: str
    overrides: dict[str, Any]
    seq_len: int
    batch_sizes: tuple[int, ...]  # sequences; the next where one does not fit
    recompute: tuple[Recompute, ...] = ("none",)  # likewise, tried first
    document: int = 0  # tokens of each document of a packed row; 0: rows are one text
    predicted: float = 1.0
    precision: str = "bf16"
    kernels: tuple[Kernels, ...] = ("torch",)  # a row for each, in turns

    @property
    def head(self) -> str:
        """What it predicts by."""
        return "masked_lm" if self.predicted < 1 else "causal_lm"

    def config(self) -> ModelConfig:
        """Its shape."""
        return preset(self.preset, **self.overrides)

    def batch(self, size: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Random tokens, as an objective's batch: `input_ids`, `targets`; and of packed rows more.

        These have `cu_seqlens` and `position_ids`, and `rows`, where not all is predicted.
        """
        vocabulary, count = self.config().vocab_size, size * self.seq_len
        ids = torch.randint(0, vocabulary, (size, self.seq_len + 1), device=device)
        found = {"input_ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}
        if self.document:
            found["cu_seqlens"] = torch.arange(
                0, count + 1, self.document, dtype=torch.int32, device=device
            )
            places = torch.arange(self.seq_len, device=device) % self.document
            found["position_ids"] = places.expand(size, -1).contiguous()
        if self.predicted < 1:
            rows = torch.randperm(count, device=device)[: int(self.predicted * count)].sort().values
            is_predicted = torch.zeros(count, dtype=torch.bool, device=device)
            is_predicted[rows] = True
            found["targets"][~is_predicted.view(size, -1)] = IGNORE_INDEX
            found["rows"] = rows
        return found


MODELS = (
    Model("124M", "gpt2-124m", _GPT2, 1024, (64, 32), kernels=("torch", "triton")),
    Model("350M", "gpt2-355m", _GPT2, 1024, (64, 32, 16)),
    Model("774M", "gpt2-774m", _GPT2, 1024, (32, 16, 8)),
    Model("1.5B", "gpt2-1.5b", _GPT2, 1024, (32, 16, 8)),
    Model("1.5B-fp8", "gpt2-1.5b", _GPT2, 1024, (32, 16, 8), precision="fp8"),
    Model("7B", "llama-2-7b", {"max_seq_len": 2048}, 2048, (4, 2, 1), ("none", "block")),
    Model("BERT-base", "bert-base", {"dropout": 0.0}, 512, (128, 64), document=128, predicted=0.15),
)

_SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 64, "vocab_size": 512}
DRY_MODELS = (
    Model("124M", "gpt2-124m", _SMALL, 64, (2,), kernels=("torch", "triton")),
    Model("1.5B-fp8", "gpt2-1.5b", _SMALL, 64, (2,), precision="fp8"),
    Model("7B", "llama-2-7b", {**_SMALL, "n_kv_heads": 2, "d_ff": 128}, 64, (2,), ("block",)),
    Model(
        *("BERT-base", "bert-base", {**_SMALL, "dropout": 0.0}, 64, (2,)),
        document=32,
        predicted=0.15,
    ),
)
