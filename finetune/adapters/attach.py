"""Put an adapter into a model: what is new learns, the checkpoint's own weights stay."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetune.adapters import bottleneck, prompts
from finetune.adapters.config import LORAS, PROMPTS, Adapter
from model.heads import Model
from runtime.errors import EXIT_BAD_INPUT, UserError

NAME = "default"  # peft's name for the only adapter of a model
_MODULES = {"qkv": "attention.qkv", "output": "attention.output", "down": "mlp.down"}
# Parameters of adapters that weight decay would pull towards the wrong value, or that are biases.
_WITHOUT_DECAY = ("ia3_l", "beft_bias", "lora_magnitude_vector", "prompt_embeddings")


@dataclass(frozen=True)
class Attached:
    """The adapter of a model."""

    keys: Adapter
    base: Path  # the checkpoint that it changes
    digest: str  # of the checkpoint's files
    written: tuple[str, ...]  # the parameters that its directory holds
    whole: int  # parameters of model and adapter; packed ones hold several numbers

    def note(self, net: Model) -> str:
        """Say how much of the model is trained."""
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        head = sum(
            p.numel()
            for name, p in net.named_parameters()
            if p.requires_grad and not name.startswith("trunk.")
        )
        return (
            f"adapter {self.keys.kind}: {trained:,} of {self.whole:,} parameters "
            f"({trained / self.whole:.2%}) are trained, {head:,} of them the head's"
        )


def attached(net: nn.Module) -> Attached | None:
    """The adapter of a model; None for a model without one."""
    found: Attached | None = net.__dict__.get("_adapter")
    return found


def attach(net: Model, keys: Adapter, base: Path, digest: str) -> None:
    """Put an adapter of these keys into a model, that changes nothing yet, and freeze the rest.

    Of a task's head the last map is trained, and what the checkpoint lacked; all of it with
    `whole_head`. Draws from torch's global generator. Raises UserError without peft, or where the
    model has no such parts.
    """
    net.requires_grad_(requires_grad=False)
    before = {name for name, _ in net.named_parameters()}
    whole = sum(p.numel() for p in net.parameters())
    if keys.quantize != "none":
        from finetune.adapters.quantized import quantise

        quantise(net, keys.quantize)
    if keys.kind in PROMPTS:
        prompts.attach(net, keys)
    elif keys.kind == "houlsby":
        bottleneck.attach(list(_targets(net, keys)), keys.rank, net.config.init_std)
    else:
        _inject(net, keys)
    for name, parameter in net.named_parameters():
        is_new = name not in before and ".base_layer." not in name and ".inner." not in name
        parameter.requires_grad_(is_new or _is_trained_head(name, net, keys))
        whole += parameter.numel() if is_new else 0
    written = [
        name
        for name, parameter in net.named_parameters()
        if parameter.requires_grad or (_has_task_head(net) and not name.startswith("trunk."))
    ]
    net.__dict__["_adapter"] = Attached(keys, base, digest, tuple(written), whole)


def without_decay(groups: list[dict[str, Any]], net: Model) -> list[dict[str, Any]]:
    """Take weight decay from the factors and biases of an adapter, which are no matrices."""
    names = {id(p): name for name, p in net.named_parameters()}
    found: list[dict[str, Any]] = []
    for group in groups:
        marks = [any(m in names[id(p)] for m in _WITHOUT_DECAY) for p in group["params"]]
        for is_free in (False, True):
            lists: dict[str, Any] = {
                key: [v for v, mark in zip(group[key], marks, strict=True) if mark is is_free]
                for key in ("params", "splits")
                if key in group
            }
            if lists["params"]:
                free = {"weight_decay": 0.0, "name": f"{group['name']}.adapter"}
                found.append({**group, **lists, **(free if is_free else {})})
    return found


def linear_maps(net: Model) -> dict[str, nn.Module]:
    """The linear maps of all layers by their names in `Adapter.targets`, dotted after the block."""
    return {
        f"trunk.blocks.{number}.{module}": block.get_submodule(module)
        for number, block in enumerate(net.trunk.blocks)
        for module in (*_MODULES.values(), _up(block))
    }


def _up(block: nn.Module) -> str:
    return "mlp.gate_up" if hasattr(block.mlp, "gate_up") else "mlp.up"


def _targets(net: Model, keys: Adapter) -> Iterator[tuple[nn.Module, str]]:
    """Where each linear map to be changed hangs: its parent and its name there."""
    for block in net.trunk.blocks:
        for target in keys.target_names(net.config.family):
            parent, _, name = _MODULES.get(target, _up(block)).rpartition(".")
            yield block.get_submodule(parent), name


def _inject(net: Model, keys: Adapter) -> None:
    peft = import_peft(keys.kind)
    names = [
        _MODULES.get(target, _up(net.trunk.blocks[0]))
        for target in keys.target_names(net.config.family)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a map has no bias of its own
        # Not into the whole model: peft takes any `config` for one of transformers.
        peft.inject_adapter_in_model(
            peft_config(peft, keys, names, [n for n in names if n == "mlp.down"]),
            net.trunk.blocks,
        )


def peft_config(
    peft: Any, keys: Adapter, targets: list[str], inputs: list[str], **values: Any
) -> Any:
    """Build peft's config of an adapter on these modules.

    inputs: those of ia3 whose input is scaled, and not the output; values: more of its fields.
    """
    values["target_modules"] = targets
    if keys.kind in LORAS:
        return peft.LoraConfig(
            r=keys.rank,
            lora_alpha=keys.alpha,
            lora_dropout=keys.dropout,
            use_rslora=keys.kind == "rslora",
            use_dora=keys.kind == "dora",
            **values,
        )
    if keys.kind == "ia3":
        return peft.IA3Config(feedforward_modules=inputs, **values)
    return peft.BeftConfig(**values)


def import_peft(kind: str) -> Any:
    """Import peft. Raises UserError without it."""
    # Which it imports where it is there, and which tells of a kernel that no hub gave it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"adapter.kind: {kind} needs peft ({error}); pip install 'ingot[finetune]'",
            status=EXIT_BAD_INPUT,
        ) from error
    return peft


def _has_task_head(net: Model) -> bool:
    """Whether the head is of a task, and not of the language model."""
    return hasattr(net, "score")


def _is_trained_head(name: str, net: Model, keys: Adapter) -> bool:
    if name.startswith("trunk.") or not _has_task_head(net):
        return False
    is_new = name in net.newly_initialised
    return is_new or name.startswith("score.") or keys.whole_head
