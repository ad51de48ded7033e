"""The text that a tokenizer is trained on: the same sample whenever and wherever it is drawn."""

import hashlib
from collections.abc import Iterator

from data_prep.documents import Item, Screen, read_unit, unique_documents
from data_prep.plan import Plan
from data_prep.readers import Document
from data_prep.split import TRAIN, Splitter, fraction_of
from data_prep.tokenizer import cut

_LEAST_QUOTA = 1 << 20  # bytes read from one unit, so that a huge input is not opened everywhere
_PIECE_CHARACTERS = 1 << 16  # small beside the sample, so that none is left without a piece


def training_texts(plan: Plan) -> Iterator[str]:
    """Yield the sample in pieces.

    Characters are learnt from all text: one that was missed could never be written. The other
    kinds learn from about `sample_bytes` of the training split, spread over the whole input.
    """
    train = plan.config.tokenizer.train
    screen = None if plan.config.dedup.is_on else Screen(plan)
    if train.kind == "char":
        for unit in range(len(plan.units)):
            yield from _texts(plan, unit, screen, None, 1.0)
        return
    wanted = train.sample_bytes
    total = sum(unit.weight for unit in plan.units)
    order = list(range(len(plan.units)))
    quota = wanted
    if total > wanted:
        order.sort(key=lambda unit: hashlib.blake2b(unit.to_bytes(8, "little")).digest())
        quota = max(_LEAST_QUOTA, wanted // len(plan.units))
    for unit in order:
        left = min(quota, wanted)
        keep = 1.0 if total <= wanted else left / plan.units[unit].weight
        for text in _texts(plan, unit, screen, TRAIN, keep):
            yield text
            size = len(text.encode("utf-8"))
            left -= size
            wanted -= size
            if left <= 0:
                break
        if wanted <= 0:
            break


def _texts(
    plan: Plan, unit: int, screen: Screen | None, split: str | None, keep: float
) -> Iterator[str]:
    splitters = [
        Splitter(plan.config, plan.sources[segment.source]) for segment in plan.units[unit].segments
    ]
    if screen:
        items: Iterator[tuple[int, Item]] = read_unit(plan, unit, screen)
    else:
        items = unique_documents(plan, unit)
    for segment, item in items:
        if not isinstance(item, Document):
            continue
        for name, text in splitters[segment](item):
            wanted = split is None or name == split
            # Pieces of a long document are drawn singly: it must not be all or nothing.
            for piece in cut(text, _PIECE_CHARACTERS) if wanted else ():
                if keep >= 1 or fraction_of(piece, b"sample") < keep:
                    yield piece
