"""Models, batches and objectives small enough to be checked by hand."""

import numpy as np
import torch

from finetune.robust.config import Robust
from finetune.robust.objectives import objective_of
from model import build, preset

FAMILIES = ["llama", "bert", "modernbert"]


def network(family="bert", head="sequence", dropout=0.0, **shape):
    torch.manual_seed(0)
    values = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "vocab_size": 50}
    values |= {"max_seq_len": 32, "pad_token_id": 0, "num_labels": 3, "dropout": dropout}
    net = build(preset(f"{family}-tiny", **{**values, **shape}), head)
    # Fresh heads are so small that nothing stands out of the rounding.
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return net.train()


def batch(rows=4, longest=9, classes=3, seed=0, labels=None):
    """Rows of unequal length, padded on the right."""
    draw = np.random.default_rng(seed)
    lengths = [longest, *draw.integers(2, longest, rows - 1)]
    ids = np.zeros((rows, longest), int)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = draw.integers(1, 50, length)
        mask[row, :length] = 1
    labels = draw.integers(0, classes, rows) if labels is None else labels
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.as_tensor(labels),
    }


def number(loss):
    return float(loss.detach())


def objective(kind="classification", classes=("a", "b", "c"), labels=(0, 1, 2), **keys):
    return objective_of(Robust(**keys), kind, classes, np.array(labels))
