"""Noise on the tokens of training texts: left out, swapped, masked, replaced.

What happens to a text is a pure function of (seed, step, its number in the set): the same on any
number of ranks, in micro-batches of any size, and after a resume.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.robust.config import Augment
from runtime.seed import mix

Tokens = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Noise:
    """Noise as the config asks for (Wei & Zou 2019: leave out, swap; Xie et al. 2017: the rest)."""

    rates: Augment
    seed: int
    fixed: frozenset[int]  # special tokens, which stay where they are
    mask_id: int | None
    known: Tokens  # (V,): the ordinary tokens of the training texts
    cumulative: npt.NDArray[np.float64]  # (V,): their shares, summed up to and with each

    @classmethod
    def of(
        cls,
        rates: Augment,
        seed: int,
        tokens: npt.NDArray[np.integer],
        fixed: Collection[int],
        mask_id: int | None,
    ) -> "Noise":
        """Learn from the tokens of the training texts how often each comes."""
        known, counts = np.unique(tokens, return_counts=True)
        is_ordinary = ~np.isin(known, list(fixed))
        counts = counts[is_ordinary]
        return cls(
            rates,
            seed,
            frozenset(fixed),
            mask_id,
            known[is_ordinary].astype(np.int64),
            np.cumsum(counts) / max(counts.sum(), 1),
        )

    def batch(self, arrays: Arrays, indices: Tokens, step: int, pad_id: int) -> Arrays:
        """Change the texts of a batch, as `Encoded.batch` made it of the items `indices`.

        input_ids (B, T) or (B, rows, T), T becoming the longest row after the change; segments
        follow their tokens. Labels stay.
        """
        shape = arrays["input_ids"].shape
        flat = {
            name: values.reshape(-1, shape[-1])
            for name, values in arrays.items()
            if values.shape == shape and name != "labels"
        }
        lengths = flat["attention_mask"].sum(1)
        rows = len(flat["input_ids"]) // len(indices)
        kept = []
        for row, length in enumerate(lengths):
            generator = np.random.default_rng(
                mix(self.seed, step, int(indices[row // rows]), row % rows)
            )
            kept.append(self.text(flat["input_ids"][row, :length], generator))
        return {**arrays, **self._joined(flat, kept, shape, pad_id)}

    def text(
        self, tokens: Tokens, generator: np.random.Generator
    ) -> tuple[Tokens, npt.NDArray[np.intp]]:
        """One text's tokens after the change, and where each was before."""
        places = np.arange(len(tokens))
        free = ~np.isin(tokens, list(self.fixed))
        changed = tokens.copy()
        draws = generator.random((4, len(tokens)))
        if self.rates.replace and len(self.known):
            chosen = free & (draws[0] < self.rates.replace)
            drawn = np.searchsorted(self.cumulative, generator.random(len(tokens)), side="right")
            changed[chosen] = self.known[drawn.clip(max=len(self.known) - 1)][chosen]
        if self.rates.mask and self.mask_id is not None:
            changed[free & (draws[1] < self.rates.mask)] = self.mask_id
        if self.rates.swap:
            for place in np.flatnonzero(draws[2][:-1] < self.rates.swap):
                if free[place] and free[place + 1]:
                    pair = [place, place + 1]
                    changed[pair], places[pair] = changed[pair[::-1]], places[pair[::-1]]
        if self.rates.delete:
            stays = ~free | (draws[3] >= self.rates.delete)
            if free.any() and not (stays & free).any():
                stays[np.flatnonzero(free)[draws[3][free].argmax()]] = True
            changed, places = changed[stays], places[stays]
        return changed, places

    @staticmethod
    def _joined(
        flat: Arrays,
        kept: list[tuple[Tokens, npt.NDArray[np.intp]]],
        shape: tuple[int, ...],
        pad_id: int,
    ) -> Arrays:
        longest = max(len(tokens) for tokens, _ in kept)
        out = {name: np.zeros((len(kept), longest), values.dtype) for name, values in flat.items()}
        out["input_ids"][:] = pad_id
        for row, (tokens, places) in enumerate(kept):
            for name, values in flat.items():
                out[name][row, : len(tokens)] = values[row, places]
            out["input_ids"][row, : len(tokens)] = tokens
        return {name: values.reshape(*shape[:-1], longest) for name, values in out.items()}
