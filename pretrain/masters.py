"""`python -m pretrain export-fp32`: the fp32 master weights of a run as a Hugging Face directory.

A checkpoint's own weights are rounded to the run's precision; the optimizer keeps them in fp32.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.hf.architecture import TRUNK, stored_head
from model.hf.config import CheckpointError, read_config
from model.hf.convert import Conversion, import_model
from model.hf.manifest import newest_step
from model.hf.shards import MAX_SHARD_BYTES
from model.hf.state import slots
from runtime.checkpoint import verify
from runtime.checkpoint.reader import TrainingState
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from runtime.zero_layout import MASTER

USAGE = """\
usage: python -m pretrain export-fp32 STEP_DIR|RUN_DIR OUT

Write the fp32 master weights of a checkpoint (of a run: of the newest) as a model directory that
transformers opens. Every byte of the checkpoint is verified first.
`python -m runtime.checkpoint export` writes them under the module's own names instead."""


class Masters(Mapping[str, Tensor]):
    """The master weights of a checkpoint by transformers' names, each read when asked for."""

    def __init__(self, state: TrainingState, config: ModelConfig, head: str) -> None:
        self._state = state
        self._slots = {name: slot for slot in slots(config, head) for name in slot.theirs}

    def __getitem__(self, name: str) -> Tensor:
        slot = self._slots[name]
        flat = self._state.read(slot.ours, MASTER, 0, math.prod(slot.shape))
        return dict(slot.to_theirs(flat.view(slot.shape)))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def without_data(self) -> dict[str, Tensor]:
        """Return tensors of the same names and shapes that hold nothing."""
        return {
            name: torch.empty(shape, device="meta")
            for slot in set(self._slots.values())
            for name, shape in zip(slot.theirs, slot.their_shapes(), strict=True)
        }


def main(arguments: list[str]) -> int:
    """Run the command; exit status 2 for a checkpoint that is not whole."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return EXIT_OK
    if len(arguments) != 2 or any(word.startswith("-") for word in arguments):
        raise UserError(f"expected STEP_DIR and OUT\n{USAGE}", status=EXIT_BAD_INPUT)
    found = export_fp32(Path(arguments[0]), Path(arguments[1]))
    print(f"{arguments[1]}: {found.tensors} tensors, {found.bytes / 1e9:.3f} GB")
    return EXIT_OK


def export_fp32(
    source: Path, destination: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Conversion:
    """Write a model directory of fp32 master weights, which appears whole or not at all.

    Held in memory: the tensors of one file. Raises UserError for a checkpoint that is damaged or
    holds none, and for a destination that exists.
    """
    try:
        checkpoint = newest_step(source)
        if problems := verify(checkpoint):
            raise UserError(f"{problems[0]}; name another checkpoint", status=EXIT_BAD_INPUT)
        config = read_config(checkpoint)
        head = stored_head(checkpoint, config)
        if head == TRUNK:
            raise UserError(f"{checkpoint}: has no head, so it is of no run", status=EXIT_BAD_INPUT)
        return import_model(
            checkpoint,
            destination,
            head=head,
            dtype=torch.float32,
            max_shard_bytes=max_shard_bytes,
            files=Masters(TrainingState(checkpoint), config, head),
        )
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from None
