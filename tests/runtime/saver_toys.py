"""A run without a model: what the store asks of an engine and of an export."""

from typing import Any

import torch

from runtime.checkpoint.saver import Saver
from runtime.dist import Ranks
from runtime.sections import Checkpoint
from runtime.zero_layout import MASTER, Slice

ONE = Ranks(0, 0, 1, torch.device("cpu"))


class Toy:
    """One parameter, cut equally among the ranks; the main one writes it as a file of its own."""

    def __init__(self, ranks: Ranks = ONE, numel: int = 1000) -> None:
        self.ranks = ranks
        self.weight = torch.zeros(numel)
        self.exports = 0
        self.error: Exception | None = None  # that the export raises

    def full_parameters(self, wanted):
        if "weight" in wanted:
            yield "weight", self.weight

    def optimizer_slices(self):
        share = -(-self.weight.numel() // self.ranks.world_size)
        start = share * self.ranks.rank
        yield Slice("weight", MASTER, start, self.weight[start : start + share])

    def optimizer_steps(self):
        return 7

    def parameter_shapes(self):
        return {"weight": [self.weight.numel()]}

    def wanted(self):
        return ["weight"] if self.ranks.is_main else []

    def write(self, directory, parameters, create):
        self.exports += 1
        if self.error is not None:
            raise self.error
        if self.ranks.is_main:
            (directory / "config.json").write_text("{}")
            with create(directory / "weight.bin") as file:
                file.write(parameters["weight"].numpy().data)


def new_saver(root, ranks=ONE, *, said=None, beats=None, **settings: Any) -> Saver:
    said, beats = [] if said is None else said, [] if beats is None else beats
    return Saver(root, ranks, Checkpoint(**settings), say=said.append, beat=lambda: beats.append(1))
