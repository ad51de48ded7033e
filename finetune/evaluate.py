"""Class probabilities of a whole set, each example computed once, by one rank."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

from finetune.batches import Indices, longest_first, pieces
from finetune.devices import to_device
from finetune.tasks.classification import Encoded, collate
from model.heads import Model
from runtime import dist
from runtime.dist import Ranks
from runtime.errors import UserError

LogProbabilities = npt.NDArray[np.float32]  # (N, classes), natural logarithm


def log_probabilities(
    net: Model,
    data: Encoded,
    ranks: Ranks,
    batch_size: int,
    pad_id: int,
    *,
    beat: Callable[[], None] = lambda: None,
) -> LogProbabilities:
    """Classify every example; every rank gets all rows, in the order of the set. Collective.

    beat: called after each batch. The GPU holds one batch at a time, results go to host memory at
    once. Raises UserError where the model returns something that is no number.
    """
    order = longest_first(np.arange(len(data)), data.lengths)
    was_training = net.training
    net.eval()
    out: LogProbabilities = np.full((len(data), net.config.num_labels), np.nan, dtype=np.float32)
    for group in pieces(order, batch_size * ranks.world_size):
        beat()
        own = np.ascontiguousarray(group[ranks.rank :: ranks.world_size])  # as orjson wants it
        rows = classify(net, collate(data, own, pad_id), ranks.device) if len(own) else own
        for indices, values in _exchange(own, rows):
            out[indices] = values
    net.train(was_training)
    if not np.isfinite(out).all():
        raise UserError(
            "the model's scores are not numbers: training diverged; lower optim.lr, add "
            "schedule.warmup_steps, and start again in another run.dir"
        )
    return out


def classify(net: Model, batch: Mapping[str, Indices], device: torch.device) -> LogProbabilities:
    """Log-probabilities (B, classes) of one batch."""
    tensors = to_device(batch, device)
    with torch.inference_mode():
        logits = net(tensors["input_ids"], tensors["attention_mask"]).logits
        rows: LogProbabilities = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
    return rows


def _exchange(indices: Indices, rows: npt.NDArray[Any]) -> list[tuple[list[int], Any]]:
    """Every rank's examples and rows, on every rank. Collective."""
    own = orjson.dumps([indices, rows], option=orjson.OPT_SERIALIZE_NUMPY).decode()
    parts = [orjson.loads(text) for text in dist.gather_text(own)]
    # JSON has no NaN: orjson writes null, which becomes NaN again.
    return [(found, np.array(values, dtype=np.float32)) for found, values in parts if found]


def prediction(row: LogProbabilities, names: Sequence[str]) -> dict[str, Any]:
    """One text's class, its probability, and every class's, from log-probabilities (classes,)."""
    probabilities = np.exp(row.astype(np.float64)).round(6).tolist()
    best = int(row.argmax())
    return {
        "predicted": names[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }
