"""Which layers of a checkpoint start afresh, which stay, and how fast the others learn."""

import re
from collections.abc import Iterable
from typing import Any

from finetune.transfer.config import Transfer
from model.heads import Model, Pooler
from model.init import initialise
from model.init import parameter_groups as groups_of_model
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.sections import Optim

_BLOCK = re.compile(r"trunk\.blocks\.(\d+)\.")
_EMBEDDING = re.compile(r"trunk\.\w*embedding(_norm)?\.")


def depth(name: str, n_layers: int) -> int:
    """The depth of a parameter, by its name: embeddings 0, layer i of n i + 1, the rest n + 1.

    The rest is the head, and the norm after the last layer.
    """
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1]) + 1
    return 0 if _EMBEDDING.match(name) else n_layers + 1


def prepare(net: Model, transfer: Transfer, total_steps: int, *, is_resumed: bool) -> list[str]:
    """Make a model ready for a strategy; returns what it did. Raises UserError as `freeze`.

    is_resumed: the model is what the run has trained so far, and nothing starts afresh.
    """
    notes = [] if is_resumed else start_afresh(net, transfer)
    notes += freeze(net, transfer)
    too_short = never_unfrozen(transfer, net.config.n_layers, total_steps)
    return [*notes, too_short] if too_short else notes


def start_afresh(net: Model, transfer: Transfer) -> list[str]:
    """Draw anew what the strategy doesn't take from the checkpoint; returns what it did.

    Draws from torch's global generator. reinit_layers also draws a pooler anew, as in Zhang et al.
    2021, "Revisiting Few-sample BERT Fine-tuning", §5.
    """
    if transfer.strategy == "architecture":
        initialise(net)
        return ["transfer.strategy architecture: every weight is drawn anew"]
    count = transfer.reinit_layers
    if not count:
        return []
    for block in net.trunk.blocks[-count:]:
        initialise(block)
    for module in net.modules():
        if isinstance(module, Pooler):
            initialise(module)
    return [f"the top {count} of {net.config.n_layers} layers start from fresh weights"]


def freeze(net: Model, transfer: Transfer) -> list[str]:
    """Stop the training of what the strategy keeps as it is; returns what it did.

    Raises UserError where nothing is left to train.
    """
    if transfer.strategy not in ("head", "partial"):
        return []
    n_layers = net.config.n_layers
    kept = n_layers if transfer.strategy == "head" else transfer.frozen_layers(n_layers)
    for name, parameter in net.named_parameters():
        is_trunk = name.startswith("trunk.")
        if is_trunk and (transfer.strategy == "head" or depth(name, n_layers) <= kept):
            parameter.requires_grad_(False)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if not trained:
        raise UserError(
            f"transfer.strategy: {transfer.strategy} leaves nothing to train in this model; choose "
            "partial or full",
            status=EXIT_BAD_INPUT,
        )
    whole = sum(p.numel() for p in net.parameters())
    part = (
        "the trunk stays"
        if transfer.strategy == "head"
        else f"the embeddings and {kept} of {n_layers} layers stay"
    )
    return [
        f"transfer.strategy {transfer.strategy}: {part} as the checkpoint has it; {trained:,} of "
        f"{whole:,} parameters ({trained / whole:.1%}) are trained"
    ]


def parameter_groups(net: Model, optim: Optim, transfer: Transfer) -> list[dict[str, Any]]:
    """Split the trainable parameters into an optimizer's groups, each of one depth where needed.

    A group's `lr_scale` multiplies the learning rate: layer_decay^(n + 1 − depth), so the head
    learns at the full rate and the top layer at the first fraction of it (Howard & Ruder 2018,
    §3.2; numbered as in Bao et al. 2022, "BEiT"). With gradual unfreezing `starts_at` is the step
    with which a group begins to learn (see `unfreeze`). What muP asks for is kept as a factor.
    """
    groups = groups_of_model(net, optim.weight_decay, muon=optim.name == "muon")
    if transfer.layer_decay == 1 and not transfer.unfreeze_every_steps:
        return groups
    n_layers = net.config.n_layers
    depths = {id(p): depth(name, n_layers) for name, p in net.named_parameters()}
    found: list[dict[str, Any]] = []
    for group in groups:
        for at in sorted({depths[id(p)] for p in group["params"]}):
            below = n_layers + 1 - at  # layers between this and the head
            own = [depths[id(p)] == at for p in group["params"]]
            lists: dict[str, Any] = {
                key: [item for item, is_own in zip(group[key], own, strict=True) if is_own]
                for key in ("params", "splits")
                if key in group
            }
            scale = group.get("lr_scale", 1.0) * transfer.layer_decay**below
            starts_at = transfer.unfreeze_every_steps * below
            name = f"{group['name']}.{at}"
            rest = {"name": name, "lr_scale": scale, "full_scale": scale, "starts_at": starts_at}
            found.append({**group, **rest, **lists})
    return found


def unfreeze(groups: Iterable[dict[str, Any]], step: int) -> None:
    """Let those groups learn in the step with this index whose time has come, the others not.

    One that waits has the rate 0: its weights stay, bit for bit, while its moments follow the
    gradients, so that its first updates are of the right size, and what is trained stays a pure
    function of the step under every engine.
    """
    for group in groups:
        if "starts_at" in group:
            group["lr_scale"] = group["full_scale"] if step >= group["starts_at"] else 0.0


def never_unfrozen(transfer: Transfer, n_layers: int, total_steps: int) -> str | None:
    """Say which layers a run is too short for; None where it reaches all."""
    every = transfer.unfreeze_every_steps
    lowest = transfer.frozen_layers(n_layers) + 1 if transfer.strategy == "partial" else 0
    needed = every * (n_layers + 1 - lowest)
    if needed < total_steps:
        return None
    waiting = n_layers + 1 - (total_steps - 1) // every - lowest  # depths from the lowest one up
    enough = (total_steps - 1) // (n_layers + 1 - lowest)
    mend = f"write {enough} or less" if enough else "train longer"
    return (
        f"warning: {total_steps} steps with transfer.unfreeze_every_steps {every} end before the "
        f"lowest {waiting} of the layers (embeddings included) begin to learn; {mend} to reach all"
    )
