"""What a model goes on to say after a question."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.generate import generate, pad_left
from model.heads import CausalLM, Model
from runtime.errors import EXIT_BAD_INPUT, UserError


def continued(
    net: Model, questions: Sequence[npt.NDArray[np.int32]], max_new_tokens: int, end: int | None
) -> list[list[int]]:
    """The likeliest next tokens of each question, up to `end` or any end-of-text token.

    Where positions are learned, an answer ends at the last of them. Raises UserError for a model
    that does not generate.
    """
    if not isinstance(net, CausalLM):
        raise UserError(
            f"a {net.config.family} model with head {net.head!r} can't write answers; take one "
            "with a causal language model's head",
            status=EXIT_BAD_INPUT,
        )
    device = net.trunk.token_embedding.weight.device
    ids, mask = pad_left([row.tolist() for row in questions], device)
    length = ids.shape[1]
    room = max_new_tokens
    if net.config.positions == "learned":
        room = min(room, net.config.max_seq_len + 1 - length)
    if room < 1:
        return [[] for _ in questions]
    stops = {*net.config.eos_token_ids, *([] if end is None else [end])}
    with torch.inference_mode():
        out = generate(net, ids, room, attention_mask=mask, is_done=lambda _, token: token in stops)
    return [_until(row, stops) for row in out[:, length:].tolist()]


def _until(row: list[int], stops: set[int]) -> list[int]:
    at = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[:at]
