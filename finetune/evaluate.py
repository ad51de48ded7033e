"""What the model says of a whole set, each item computed once, by one rank."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import torch

from finetune.batches import Indices, longest_first, pieces
from finetune.devices import to_device
from finetune.tasks.base import Encoded, Outputs, Task
from finetune.tokenizer import TextTokenizer
from model.heads import Model
from runtime import dist
from runtime.dist import Ranks
from runtime.errors import UserError


def outputs(
    net: Model,
    task: Task,
    data: Encoded,
    ranks: Ranks,
    batch_size: int,
    *,
    pad_id: int,
    beat: Callable[[], None] = lambda: None,
) -> Outputs:
    """What the task keeps of every item; every rank gets all, in the order of the set. Collective.

    batch_size: items per forward pass and rank. beat: called after each batch. The device holds
    one batch at a time, results go to host memory at once. Raises UserError where the model
    returns something that is no number.
    """
    order = longest_first(np.arange(len(data)), data.lengths)
    was_training = net.training
    net.eval()
    # ZeRO-3 puts a layer together on all ranks at once, and outside inference mode.
    is_cut = any(hasattr(parameter, "ds_id") for parameter in net.parameters())
    found: dict[int, Any] = {}
    for group in pieces(order, batch_size * ranks.world_size):
        beat()
        own = group[ranks.rank :: ranks.world_size]
        turn = own if len(own) or not is_cut else group[-1:]
        rows = infer(net, task, data, turn, ranks.device, pad_id) if len(turn) else []
        rows = rows if len(own) else []
        for indices, values in _exchange(own, rows):
            found.update(zip(indices, values, strict=True))
    net.train(was_training)
    in_order = [found[index] for index in range(len(data))]
    if not all(np.isfinite(values).all() for values in in_order):
        raise UserError(
            "the model's scores are not numbers: training diverged; lower optim.lr, add "
            "schedule.warmup_steps, and start again in another run.dir"
        )
    return in_order


def infer(
    net: Model, task: Task, data: Encoded, indices: Indices, device: torch.device, pad_id: int
) -> Outputs:
    """What the task keeps of these items, one batch."""
    batch = to_device(data.batch(indices, pad_id), device)
    with torch.no_grad():
        return task.infer(net, batch)


def answers(
    net: Model,
    task: Task,
    data: Encoded,
    indices: Indices,
    tokenizer: TextTokenizer,
    device: torch.device,
) -> Outputs:
    """What the task keeps of these items to answer them, one batch."""
    found = task.answer(net, data, indices, tokenizer)
    if found is None:
        return infer(net, task, data, indices, device, tokenizer.pad_id)
    return found


def _exchange(indices: Indices, rows: Outputs) -> list[tuple[list[int], Outputs]]:
    """Every rank's items and what is kept of them, on every rank. Collective."""
    packed = [(r.dtype.str, r.shape, base64.b64encode(r.tobytes()).decode()) for r in rows]
    own = orjson.dumps([indices.tolist(), packed]).decode()
    parts = [orjson.loads(text) for text in dist.gather_text(own)]
    return [(found, [_unpacked(*values) for values in kept]) for found, kept in parts]


def _unpacked(dtype: str, shape: list[int], content: str) -> Any:
    return np.frombuffer(base64.b64decode(content), dtype=dtype).reshape(shape)
