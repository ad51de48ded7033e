"""The linear maps inside the blocks in 8-bit floating point, by torchao, while training.

Each of a map's three matrix products (its output, the gradient of its input, that of its weight)
takes both factors rounded to 8 bits, scaled so that the largest number of each tensor is the
largest of its format: e4m3 for inputs and weights, e5m2 for gradients (Micikevicius et al. 2022),
and gives 16 bits. Weights and gradients stay as they are without it. Heads and embeddings do too,
and so does every map out of training: what is evaluated is what is exported.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from model.layers import Linear

MULTIPLE = 16  # of both widths of a map: what the GPU's products take


class Maps(NamedTuple):
    """How many linear maps of the blocks compute in 8 bits, and how many can't."""

    in_float8: int
    kept: int

    def __str__(self) -> str:
        """In a line for the log."""
        total = self.in_float8 + self.kept
        if not self.kept:
            return f"all {total} linear maps of the blocks in FP8"
        return (
            f"{self.in_float8} of {total} linear maps of the blocks in FP8; {self.kept} in bf16, "
            f"because a width of theirs is no multiple of {MULTIPLE}"
        )


def use_in(net: nn.Module, *, emulate: bool) -> None:
    """Have the maps compute in 8 bits, once the model is where it will be trained.

    The module tree and its parameters stay as they are. emulate: round to 8 bits, and multiply in
    fp32; it runs anywhere, and is slow. Raises ImportError without torchao.
    """
    convert, settings = _torchao(emulate)
    for module in _maps(net):
        if _fits(module):
            # Outside of the tree it shares the parameters, which ZeRO fills and empties in place.
            module.float8 = convert(module, config=settings).forward


def maps_of(net: nn.Module) -> Maps:
    """What `use_in` has done to a model."""
    found = [module.float8 is not None for module in _maps(net)]
    return Maps(sum(found), len(found) - sum(found))


def _maps(net: nn.Module) -> Iterator[Linear]:
    """The maps inside the blocks."""
    return (m for m in net.modules() if isinstance(m, Linear) and m.row_splits)


def _fits(module: Linear) -> bool:
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _torchao(emulate: bool) -> tuple[Any, Any]:
    try:
        with _quiet():
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ImportError(
            f"precision: fp8 needs torchao, which cannot be imported ({error}); run pip install"
            " 'ingot[fp8]', or write bf16"
        ) from error
    # Padded: the gradient of a weight sums over the tokens, whose number need be no multiple.
    return convert_to_float8_training, Float8LinearConfig(emulate=emulate, pad_inner_dim=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao says when imported: of kernels that are not used here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
