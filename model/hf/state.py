"""Tensor names and layouts: ours to Hugging Face's and back."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.heads import build
from model.hf.config import CheckpointError
from model.hf.names import (
    NAMES,
    TIED_COPIES,
    canonical,
    is_constant,
    is_of_a_head,
    outer_name,
    trunk_prefix,
)

# What a checkpoint may lack: these parts are trained anew for each task.
_NEW_IN_TASKS = ("score.", "pooler.", "transform.")
_NEW = {
    "sequence": _NEW_IN_TASKS,
    "token": _NEW_IN_TASKS,
    "span": _NEW_IN_TASKS,
    "choice": _NEW_IN_TASKS,
    "pretraining": ("pooler.", "pair_score."),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of ours and the tensors of theirs that hold the same numbers."""

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    rows: tuple[int, ...]  # of ours, that each of theirs holds; rows after them are padding
    is_transposed: bool  # GPT-2 stores its matrices as (in, out)

    def their_shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shape of each of theirs."""
        for rows in self.rows:
            shape = (rows, *self.shape[1:])
            yield shape[::-1] if self.is_transposed else shape

    def to_theirs(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield theirs by name, as views of ours."""
        for name, part in zip(self.theirs, _split(tensor, self.rows), strict=True):
            yield name, part.t() if self.is_transposed else part

    def to_ours(self, parts: list[Tensor]) -> Tensor:
        """Join theirs, in the order of `theirs`."""
        parts = [part.t() for part in parts] if self.is_transposed else parts
        padding = self.shape[0] - sum(self.rows)
        if padding:
            parts = [*parts, parts[0].new_zeros((padding, *self.shape[1:]))]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def slots(config: ModelConfig, head: str) -> list[Slot]:
    """List where every parameter of a model lives in a Hugging Face checkpoint."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build(config, head).state_dict().items()}
    return [_slot(name, shape, config, head) for name, shape in shapes.items()]


def _slot(name: str, shape: tuple[int, ...], config: ModelConfig, head: str) -> Slot:
    family, kv_rows = config.family, config.n_kv_heads * config.head_dim
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    rows = shape[:1]
    if name in ("trunk.token_embedding.weight", "unembedding.weight", "output_bias"):
        rows = (config.vocab_size,)
    if family == "custom":
        return Slot(name, shape, (name,), rows, is_transposed=False)
    block = re.fullmatch(r"trunk\.blocks\.(\d+)\.(.+)", module)
    if block is None:
        theirs = (
            outer_name(family, head, name, "")
            if name == "output_bias"
            else outer_name(family, head, module, kind)
        )
        return Slot(name, shape, (theirs,), rows, is_transposed=False)
    inner = block[2]
    stem = f"{trunk_prefix(family, head)}{NAMES[family].blocks}.{block[1]}."
    parts = tuple(f"{stem}{part}.{kind}" for part in NAMES[family].block[inner])
    if len(parts) > 1:
        rows = (
            (config.n_heads * config.head_dim, kv_rows, kv_rows)
            if inner == "attention.qkv"
            else (config.d_ff, config.d_ff)
        )
    return Slot(name, shape, parts, rows, NAMES[family].is_transposed and len(shape) == 2)


def to_hf_state(
    state: Mapping[str, Tensor], config: ModelConfig, head: str = "causal_lm"
) -> dict[str, Tensor]:
    """Rename, split and transpose a whole state dict of ours; values may share memory with it.

    Raises `CheckpointError` when a tensor is missing, extra or wrongly shaped.
    """
    plan = slots(config, head)
    expected = {slot.ours: slot.shape for slot in plan}
    refuse_differences({name: tuple(t.shape) for name, t in state.items()}, expected)
    return {name: t for slot in plan for name, t in slot.to_theirs(state[slot.ours])}


def from_hf_state(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    head: str = "causal_lm",
    *,
    is_new_head_allowed: bool = False,
) -> dict[str, Tensor]:
    """Rename, join and transpose a whole Hugging Face state dict into ours.

    Names without the trunk's prefix, stored constants and the tensors of other heads are accepted.
    With `is_new_head_allowed`, what a task's head lacks in the checkpoint (or has in another shape)
    is left out of the result. Raises `CheckpointError` when tensors are missing, extra or wrongly
    shaped.
    """
    plan = slots(config, head)
    sources = canonical_names(state, config.family, head)
    expected = {
        name: shape
        for slot in plan
        for name, shape in zip(slot.theirs, slot.their_shapes(), strict=True)
    }
    if is_new_head_allowed:
        _leave_out_new(
            [slot for slot in plan if slot.ours.startswith(_NEW.get(head, ()))],
            state,
            sources,
            expected,
        )
    _check_tie(state, sources, config, head)
    shapes = {
        name: tuple(state[source].shape)
        for name, source in sources.items()
        if name in expected or not is_of_a_head(name, config.family)
    }
    refuse_differences(shapes, expected)
    return {
        slot.ours: slot.to_ours([state[sources[name]] for name in slot.theirs])
        for slot in plan
        if slot.theirs[0] in expected
    }


def has_head(names: Iterable[str], config: ModelConfig, head: str) -> bool:
    """Whether a checkpoint holds the last matrix of a task's head (true for other heads)."""
    if head not in _NEW:
        return True
    module = "pair_score" if head == "pretraining" else "score"
    wanted = (
        f"{module}.weight"
        if config.family == "custom"
        else outer_name(config.family, head, module, "weight")
    )
    return any(canonical(name, config.family, head) == wanted for name in names)


def _leave_out_new(
    head: list[Slot],
    state: Mapping[str, Tensor],
    sources: dict[str, str],
    expected: dict[str, tuple[int, ...]],
) -> None:
    """Expect nothing of a module of the head of which a tensor is missing or of another shape."""
    stored = {name: tuple(state[source].shape) for name, source in sources.items()}
    unfit = {
        slot.ours.rpartition(".")[0]
        for slot in head
        if any(stored.get(name) != expected[name] for name in slot.theirs)
    }
    for slot in head:
        if slot.ours.rpartition(".")[0] in unfit:
            for name in slot.theirs:
                del expected[name]
                sources.pop(name, None)


def canonical_names(names: Iterable[str], family: str, head: str) -> dict[str, str]:
    """Map each name in its full form to the name in the file; stored constants are left out."""
    found = dict[str, str]()
    for name in names:
        if is_constant(name):
            continue
        full = canonical(name, family, head)
        if full in found:
            raise CheckpointError(f"tensors: both {found[full]} and {name} are present; keep one")
        found[full] = name
    return found


def _check_tie(
    state: Mapping[str, Tensor], sources: dict[str, str], config: ModelConfig, head: str
) -> None:
    """Refuse a stored copy of a tied matrix that differs: it would be dropped silently."""
    if not config.tie_embeddings or head not in ("causal_lm", "masked_lm", "pretraining"):
        return
    for copy, ours in TIED_COPIES[config.family].items():
        module = "trunk.token_embedding" if ours == "token_embedding" else ours
        kind = "" if ours == "output_bias" else "weight"
        original = (
            f"{module}.{kind}".rstrip(".")
            if config.family == "custom"
            else outer_name(config.family, head, module, kind)
        )
        if copy not in sources or original not in sources:
            continue
        stored, tied = state[sources[copy]], state[sources[original]]
        if not tied.is_meta and not torch.equal(stored, tied):
            raise CheckpointError(
                f"tie_word_embeddings: got true, but {copy} differs from {original};"
                f" set it to false in config.json, or remove {copy}"
            )


def refuse_differences(
    got: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise `CheckpointError`, listing what is missing, extra or of another shape."""
    problems = [f"missing {name}" for name in expected if name not in got]
    problems += [f"unexpected {name}" for name in got if name not in expected]
    problems += [
        f"{name} has shape {list(got[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    if problems:
        more = f" (+{len(problems) - 8} more)" if len(problems) > 8 else ""
        raise CheckpointError(f"tensors do not fit the config: {', '.join(problems[:8])}{more}")


def _split(tensor: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Cut the first dimension; torch's own `split` carries no types."""
    starts = [sum(rows[:i]) for i in range(len(rows))]
    return tuple(tensor[start : start + n] for start, n in zip(starts, rows, strict=True))
