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

    Where positions are learned, an answer ends at the last of them: a question that leaves less
    room than `max_new_tokens` is answered by itself, so that its neighbours are not cut short.
    Raises UserError for a model that does not generate.
    """
    if not isinstance(net, CausalLM):
        raise UserError(
            f"a {net.config.family} model with head {net.head!r} can't write answers; take one "
            "with a causal language model's head",
            status=EXIT_BAD_INPUT,
        )
    stops = {*net.config.eos_token_ids, *([] if end is None else [end])}
    rooms = [_room(net, len(question), max_new_tokens) for question in questions]
    together = [i for i, room in enumerate(rooms) if room == max_new_tokens]
    alone = [[i] for i, room in enumerate(rooms) if 0 < room < max_new_tokens]
    found: list[list[int]] = [[] for _ in questions]
    for group in [together, *alone] if together else alone:
        answers = _generated(net, [questions[i] for i in group], rooms[group[0]], stops)
        for index, answer in zip(group, answers, strict=True):
            found[index] = answer
    return found


def _room(net: CausalLM, length: int, max_new_tokens: int) -> int:
    """How many tokens may follow so many."""
    if net.config.positions != "learned":
        return max_new_tokens
    return max(0, min(max_new_tokens, net.config.max_seq_len + 1 - length))


def _generated(
    net: CausalLM, questions: Sequence[npt.NDArray[np.int32]], room: int, stops: set[int]
) -> list[list[int]]:
    device = net.trunk.token_embedding.weight.device
    ids, mask = pad_left([row.tolist() for row in questions], device)
    with torch.inference_mode():
        out = generate(net, ids, room, attention_mask=mask, is_done=lambda _, token: token in stops)
    return [_until(row, stops) for row in out[:, ids.shape[1] :].tolist()]


def _until(row: list[int], stops: set[int]) -> list[int]:
    at = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[:at]
