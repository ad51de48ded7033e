"""What the model learns to predict: samples of the loader → batches and their loss.

Importing the package needs no torch; `make_objective` does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.objectives.traits import TRAITS, Traits, layout_for

if TYPE_CHECKING:
    from data_prep.shards import Shards
    from pretrain.config import PretrainConfig
    from pretrain.objectives.objective import Objective

__all__ = ["TRAITS", "Traits", "layout_for", "make_objective"]


def make_objective(config: "PretrainConfig", shards: Sequence["Shards"], seed: int) -> "Objective":
    """The config's objective on these sources, of one split. `seed` decides what it draws."""
    from pretrain.objectives.factory import make

    return make(config, shards, seed)
