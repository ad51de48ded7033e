"""The model's files in a checkpoint: each rank writes a part of them."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from model.heads import Model
from model.hf.directory import ModelFiles
from model.hf.shards import Create, Part
from pretrain.tokenizer import begin_texts_with
from runtime.dist import Ranks


class ModelExport:
    """Writes a model as a Hugging Face directory; see `runtime.checkpoint.saver.Export`.

    begin_with: the token that texts begin with, where the model was trained to see one.
    """

    def __init__(
        self, net: Model, ranks: Ranks, tokenizer_dir: Path, begin_with: int | None
    ) -> None:
        dtype = next(net.parameters()).dtype
        part = Part(ranks.rank, ranks.world_size)
        self._files = ModelFiles(
            net.config, net.head, dtype, tokenizer_dir=tokenizer_dir, part=part
        )
        self._begin_with = begin_with if ranks.is_main else None
        self._wanted = frozenset(self._files.wanted())

    def wanted(self) -> Collection[str]:
        """The parameters that this rank's files hold."""
        return self._wanted

    def write(
        self, directory: Path, parameters: Mapping[str, torch.Tensor], create: Create
    ) -> None:
        """Write this rank's files."""
        self._files.write(directory, parameters, create)
        if self._begin_with is not None:
            begin_texts_with(directory, self._begin_with)
