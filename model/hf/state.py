"""Tensor names and layouts: ours to Hugging Face's and back."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.heads import build
from model.hf.config import CheckpointError

_PREFIX = {"gpt2": "transformer.", "llama": "model."}  # of the trunk's tensors
_HEADS = ("lm_head.weight", "score.weight")
# Constants that older versions of transformers saved.
_CONSTANTS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")

_TRUNK: dict[str, dict[str, str]] = {
    "gpt2": {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
    "llama": {"token_embedding": "embed_tokens", "final_norm": "norm"},
}
_LAYERS = {"gpt2": "h", "llama": "layers"}
_BLOCK: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "attention_norm": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.output": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp.up": ("mlp.c_fc",),
        "mlp.down": ("mlp.c_proj",),
    },
    "llama": {
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.output": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down": ("mlp.down_proj",),
    },
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of ours and the tensors of theirs that hold the same numbers."""

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    rows: tuple[int, ...]  # of ours, that each of theirs holds
    is_transposed: bool  # GPT-2 stores its matrices as (in, out)

    def their_shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shape of each of theirs."""
        for rows in self.rows:
            shape = (rows, *self.shape[1:])
            yield shape[::-1] if self.is_transposed else shape


def is_constant(name: str) -> bool:
    """Say whether a stored tensor is no parameter but a constant of an older version."""
    return _CONSTANTS.search(name) is not None


def slots(config: ModelConfig, head: str) -> list[Slot]:
    """List where every parameter of a model lives in a Hugging Face checkpoint."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build(config, head).state_dict().items()}
    family, kv_rows = config.family, config.n_kv_heads * config.head_dim
    split = {
        "attention.qkv": (config.n_heads * config.head_dim, kv_rows, kv_rows),
        "mlp.gate_up": (config.d_ff, config.d_ff),
    }
    found = []
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")  # kind: weight or bias
        block = re.fullmatch(r"trunk\.blocks\.(\d+)\.(.+)", module)
        if block:
            inner = block[2]
            stem = f"{_PREFIX[family]}{_LAYERS[family]}.{block[1]}."
            theirs = tuple(f"{stem}{part}.{kind}" for part in _BLOCK[family][inner])
            rows = split[inner] if len(theirs) > 1 else shape[:1]
        else:
            theirs, rows = (_outer_name(family, module, kind),), shape[:1]
        is_transposed = family == "gpt2" and block is not None and len(shape) == 2
        found.append(Slot(name, shape, theirs, rows, is_transposed))
    return found


def to_hf_state(
    state: Mapping[str, Tensor], config: ModelConfig, head: str = "causal_lm"
) -> dict[str, Tensor]:
    """Rename, split and transpose a whole state dict of ours; values may share memory with it.

    Raises `CheckpointError` when a tensor is missing, extra or wrongly shaped.
    """
    plan = slots(config, head)
    expected = {slot.ours: slot.shape for slot in plan}
    _refuse_differences({name: tuple(t.shape) for name, t in state.items()}, expected)
    out: dict[str, Tensor] = {}
    for slot in plan:
        for name, part in zip(slot.theirs, _split(state[slot.ours], slot.rows), strict=True):
            out[name] = part.t() if slot.is_transposed else part
    return out


def from_hf_state(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    head: str = "causal_lm",
    *,
    is_new_head_allowed: bool = False,
) -> dict[str, Tensor]:
    """Rename, join and transpose a whole Hugging Face state dict into ours.

    Names without the trunk's prefix, stored constants and the tensors of other heads are accepted.
    With `is_new_head_allowed`, a sequence head that the checkpoint lacks (or has in another shape)
    is left out of the result. Raises `CheckpointError` when tensors are missing, extra or wrongly
    shaped.
    """
    plan = slots(config, head)
    sources = _canonical_names(state, config.family)
    expected = {
        name: shape
        for slot in plan
        for name, shape in zip(slot.theirs, slot.their_shapes(), strict=True)
    }
    if is_new_head_allowed and head == "sequence":
        theirs = sources.get("score.weight")
        if theirs is None or tuple(state[theirs].shape) != expected["score.weight"]:
            del expected["score.weight"]
            sources.pop("score.weight", None)
    _check_tie(state, sources, config, head)
    shapes = {
        name: tuple(state[source].shape)
        for name, source in sources.items()
        if name in expected or name not in _HEADS
    }
    _refuse_differences(shapes, expected)
    out: dict[str, Tensor] = {}
    for slot in plan:
        if slot.theirs[0] in expected:
            parts = [state[sources[name]] for name in slot.theirs]
            parts = [part.t() for part in parts] if slot.is_transposed else parts
            out[slot.ours] = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    return out


def _outer_name(family: str, module: str, kind: str) -> str:
    if module == "unembedding":
        return f"lm_head.{kind}"
    if module == "score":
        return f"score.{kind}"
    return f"{_PREFIX[family]}{_TRUNK[family][module.removeprefix('trunk.')]}.{kind}"


def _canonical_names(names: Iterable[str], family: str) -> dict[str, str]:
    """Map each name in its full form to the name in the file; stored constants are left out."""
    prefix, found = _PREFIX[family], dict[str, str]()
    for name in names:
        if is_constant(name):
            continue
        full = name if name.startswith(prefix) or name in _HEADS else prefix + name
        if full in found:
            raise CheckpointError(f"tensors: both {found[full]} and {name} are present; keep one")
        found[full] = name
    return found


def _check_tie(
    state: Mapping[str, Tensor], sources: Mapping[str, str], config: ModelConfig, head: str
) -> None:
    """Refuse a stored output matrix that a tied model would silently drop."""
    embedding = sources.get(_outer_name(config.family, "trunk.token_embedding", "weight"))
    if not config.tie_embeddings or head != "causal_lm" or embedding is None:
        return
    if "lm_head.weight" in sources:
        stored, tied = state[sources["lm_head.weight"]], state[embedding]
        if not tied.is_meta and not torch.equal(stored, tied):
            raise CheckpointError(
                "tie_word_embeddings: got true, but lm_head.weight differs from the token"
                " embedding; set it to false in config.json, or remove lm_head.weight"
            )


def _refuse_differences(
    got: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
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
