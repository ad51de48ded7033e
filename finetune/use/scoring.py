"""The scores of a model on a labelled file, in this process; for a before and an after."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from finetune.batches import longest_first, pieces
from finetune.evaluate import infer
from finetune.models import Opened
from finetune.tasks.base import Encoded, Outputs
from runtime.errors import EXIT_BAD_INPUT, UserError

_BATCH = 32


class Scored(NamedTuple):
    """Scores, and the time that the model took for them."""

    scores: dict[str, float]
    seconds_per_example: float


def read_labelled(opened: Opened, path: Path) -> Encoded:
    """Read and encode a labelled file. Raises UserError with its wrong lines."""
    examples, problems = opened.task.read(path)
    problems = problems or opened.task.check("test", examples, opened.labels)
    if problems:
        raise UserError("; ".join(problems), status=EXIT_BAD_INPUT)
    return opened.task.encode(examples, opened.labels, opened.tokenizer)


def run(net: Any, opened: Opened, data: Encoded, device: torch.device) -> Outputs:
    """What the task keeps of every item, in the order of the set."""
    found: Outputs = [np.empty(0)] * len(data)
    for piece in pieces(longest_first(np.arange(len(data)), data.lengths), _BATCH):
        rows = infer(net, opened.task, data, piece, device, opened.tokenizer.pad_id)
        for index, row in zip(piece.tolist(), rows, strict=True):
            found[index] = row
    return found


def score(net: Any, opened: Opened, data: Encoded, device: torch.device) -> Scored:
    """Score a model, or what computes as one, on a set."""
    run(net, opened, data_head(data, opened), device)  # the first pass of anything is slow
    began = time.perf_counter()
    found = run(net, opened, data, device)
    took = time.perf_counter() - began
    scores = opened.task.scores(data, found, opened.labels)
    return Scored(scores, took / max(len(data.examples), 1))


def data_head(data: Encoded, opened: Opened, count: int = _BATCH) -> Encoded:
    """The first examples of a set as one of its own."""
    return opened.task.encode(list(data.examples[:count]), opened.labels, opened.tokenizer)


def table(rows: list[tuple[str, float, Scored | None]], metric: str) -> str:
    """Name, bytes, score and time, side by side; times as a multiple of the first's."""
    first = rows[0][2]
    lines = [f"{'':24}{'size, MB':>10}{metric:>12}{'time, ratio':>13}"]
    for name, size, scored in rows:
        line = f"{name:24}{size / 1e6:10.2f}"
        if scored is not None and first is not None:
            ratio = scored.seconds_per_example / first.seconds_per_example
            line += f"{scored.scores[metric]:12.4f}{ratio:13.2f}"
        lines.append(line)
    return "\n".join(lines)
