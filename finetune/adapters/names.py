"""Where each parameter of an adapter stands in a PEFT directory."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.adapters.config import PROMPTS, Adapter
from model.config import ModelConfig
from model.heads import Model
from model.hf.state import Slot, slots

_PART = re.compile(
    r"(?P<module>trunk\.blocks\.\d+\.\w+\.\w+)\."
    r"(?P<part>lora_A|lora_B|lora_magnitude_vector|ia3_l|beft_bias|houlsby_down|houlsby_up)\."
    r"(default\.?)?(?P<kind>weight|bias)?"
)
PROMPT = "prompt_embeddings"


class Place(NamedTuple):
    """The tensors of a file that a parameter is: the same in each, or cut into them.

    Hugging Face's families have queries, keys and values in maps of their own where ours are one:
    a change of low rank, B·A, is cut by the rows of B and keeps the whole of A in each.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    axis: int | None  # along which it is cut; None: each holds all of it
    slot: Slot | None = None  # of the model's own parameters
    is_flat: bool = False  # stored with one dimension

    def to_file(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors by name, as views."""
        if self.slot is not None:
            for name, (_, part) in zip(self.names, self.slot.to_theirs(tensor), strict=True):
                yield name, part
            return
        whole = [tensor] * len(self.names)
        parts = whole if self.axis is None else torch.split(tensor, list(self.rows), self.axis)
        for name, part in zip(self.names, parts, strict=True):
            yield name, part.flatten() if self.is_flat else part

    def from_file(self, tensors: dict[str, Tensor]) -> Tensor:
        """Join them. Raises ValueError where one is missing, or two differ that must not."""
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        found = [tensors[name] for name in self.names]
        if self.slot is not None:
            return self.slot.to_ours(found)
        if self.axis is not None:
            return torch.cat(found, 0 if self.is_flat else self.axis)
        if not all(torch.equal(part, found[0]) for part in found):
            raise ValueError(f"{self.names[1]} differs from {self.names[0]}")
        return found[0]


class Places:
    """Finds the place of every parameter of a model's adapter."""

    def __init__(self, config: ModelConfig, head: str, keys: Adapter) -> None:
        self._slots = {slot.ours: slot for slot in slots(config, head)}
        # peft keeps the model itself in its tuner, but in no tuner for virtual tokens.
        self._prefix = "base_model." if keys.kind in PROMPTS else "base_model.model."
        self._is_gpt2_bias = is_bias_by_lora(config, keys)

    def place(self, name: str) -> Place:
        """The place of a parameter."""
        if name.rpartition(".")[2] == PROMPT:
            return Place((PROMPT,), (), None)
        match = _PART.fullmatch(name)
        if match is None:
            slot = self._slots[name]
            return Place(tuple(self._prefix + n for n in slot.theirs), slot.rows, 0, slot)
        part, kind = match["part"], match["kind"]
        axis = {"lora_A": None, "lora_B": 0, "lora_magnitude_vector": 0, "beft_bias": 1}.get(part)
        modules = self.modules(match["module"])
        if part == "ia3_l":
            axis = None if match["module"].endswith("mlp.down") else 0
        is_flat = part == "beft_bias" and self._is_gpt2_bias
        if is_flat:
            part, kind = "lora_B", "bias"
        # peft leaves out the name of the adapter, and what a magnitude is a weight of.
        ends = f".{part}" if part == "lora_magnitude_vector" or not kind else f".{part}.{kind}"
        rows = self._slots[f"{match['module']}.weight"].rows
        return Place(tuple(self._prefix + m + ends for m in modules), rows, axis, is_flat=is_flat)

    def modules(self, module: str) -> tuple[str, ...]:
        """Hugging Face's modules that one of ours stands for."""
        theirs = self._slots[f"{module}.weight"].theirs
        return tuple(name.removesuffix(".weight") for name in theirs)

    def head_modules(self) -> list[str]:
        """The modules of a task's head, as peft's modules_to_save names them."""
        names = [
            n for s in self._slots.values() if not s.ours.startswith("trunk.") for n in s.theirs
        ]
        # BERT's pooler is in its trunk; every other part of a head stands beside it.
        tops = ["pooler" if ".pooler." in name else name.split(".")[0] for name in names]
        return sorted(set(tops))


def is_bias_by_lora(config: ModelConfig, keys: Adapter) -> bool:
    """Whether a directory holds biases as those of empty changes of low rank.

    GPT-2's maps are of a class in transformers that peft's own method for biases does not take.
    """
    return keys.kind == "bitfit" and config.family == "gpt2"


def target_modules(net: Model, places: Places, ours: list[str]) -> list[str]:
    """Hugging Face's modules that these stand for, by the ends of their names where these do."""
    wanted = {m for name in ours for m in places.modules(name)}
    everything = {m.removesuffix(".weight") for s in slots(net.config, net.head) for m in s.theirs}
    ends = {re.sub(r"^.*?\.\d+\.", "", name) for name in wanted}
    meant = {n for n in everything if any(n.endswith(f".{end}") for end in ends)}
    return sorted(ends if meant == wanted else wanted)
