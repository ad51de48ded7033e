"""`transfer.strategy: auto`: which of the four ways fits a task, and why.

The table is that of the transfer-learning textbooks: few or many examples, like or unlike the text
that the checkpoint was pretrained on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from finetune.transfer.config import Transfer
from finetune.transfer.similarity import Measured, measure
from model.hf import read_config
from runtime import dist
from runtime.dist import Ranks

# Examples from which on every weight is trained. Freezing pays where there is next to nothing to
# learn from; measured on a masked model of 3 layers (accuracy of full, partial, head): 30 examples
# of 10 classes 0.50, 0.42, –; 90 of them 0.86, 0.81, 0.65; 900 examples of 2 classes 0.64, 0.57,
# 0.54. One run each.
FEW = 20
# Texts are like the checkpoint's own where it predicts them better than the frequencies of their
# tokens do: by which share of that loss. That model saved 0.52 on bank questions and 0.23 on film
# reviews (it had read some of both), 0.08 on school arithmetic, −0.07 on picture captions (it had
# read none of these), −1.7 on Chinese.
LIKE = 0.0
# The same by vocabulary, above what a sample of the pretraining text has, where there is no loss.
LIKE_DIVERGENCE = 0.35  # bits
_UNKNOWN = 0.05  # share of unknown tokens worth a warning


class Decision(NamedTuple):
    """A strategy, and what it was chosen by."""

    transfer: Transfer  # with a strategy that is not auto
    reasons: Sequence[str] = ()
    measured: Measured | None = None

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint and the report keep of it."""
        measured = None if self.measured is None else self.measured._asdict()
        if measured is not None and self.measured is not None:
            measured["explained"] = self.measured.explained
        return {
            **self.transfer.model_dump(mode="json"),
            "reasons": list(self.reasons),
            "measured": measured,
        }


def decide(
    transfer: Transfer,
    directory: Path,
    texts: Sequence[str],
    ranks: Ranks,
    *,
    max_length: int,
    head: str,
) -> Decision:
    """Settle the strategy of a new run; with auto the main rank measures for all. Collective.

    directory: of the checkpoint. texts: of the training set. head: of the task. Raises
    UserError as `measure`.
    """
    if transfer.strategy != "auto":
        return Decision(transfer)
    found: list[Measured] = []
    dist.together(
        lambda: found.append(measure(directory, texts, max_length, transfer.reference)),
        only_main=True,
    )
    own = orjson.dumps(found[0]._asdict()).decode() if ranks.is_main else ""
    measured = Measured(**orjson.loads(dist.gather_text(own)[0]))
    shape = read_config(directory)
    is_tied = head == "causal_lm" and shape.tie_embeddings
    return advise(transfer, measured, shape.n_layers, has_own_head=not is_tied)


def decided(stored: Mapping[str, Any]) -> Decision:
    """Read what `as_json` made. Raises what a hostile file leads to."""
    keys = {name: stored[name] for name in Transfer.model_fields if name in stored}
    reasons = [str(reason) for reason in stored["reasons"]]
    numbers = {name: stored["measured"][name] for name in Measured._fields}
    return Decision(Transfer.model_validate(keys), reasons, Measured(**numbers))


def advise(
    transfer: Transfer, measured: Measured, n_layers: int, *, has_own_head: bool = True
) -> Decision:
    """Choose by the number of examples and their likeness.

    has_own_head: False where the head is the embedding's own matrix, so that it can't learn alone.
    """
    is_like, likeness = _likeness(measured)
    is_few = measured.examples < FEW
    size = f"{measured.examples:,} examples ({'few' if is_few else 'enough'}: {FEW} are enough)"
    chosen, why = _choice(is_few, is_like and (has_own_head or not is_few), n_layers)
    if is_few and is_like and not has_own_head:
        why = (
            "few examples, and a head that is the embeddings' own matrix can't learn alone; the "
            f"first {chosen['freeze_layers']} layers stay"
        )
    reasons = [
        f"transfer.strategy auto: {size}; {likeness}",
        f"so {chosen['strategy']}: {why}",
        *_remarks(measured),
    ]
    return Decision(transfer.model_copy(update=chosen), reasons, measured)


def _likeness(measured: Measured) -> tuple[bool, str]:
    """Whether the texts are like the checkpoint's own, and how that is known."""
    explained = measured.explained
    if explained is not None:
        is_like = explained > LIKE
        than = f"{abs(explained):.0%} {'less' if explained >= 0 else 'more'} than"
        return is_like, (
            f"the checkpoint's own loss on their texts is {measured.own_loss:.2f} nats per token, "
            f"{than} the {measured.unigram_loss:.2f} of token frequencies alone "
            f"({'like' if is_like else 'unlike'} its own texts)"
        )
    if measured.divergence is not None and measured.divergence_floor is not None:
        above = measured.divergence - measured.divergence_floor
        is_like = above <= LIKE_DIVERGENCE
        return is_like, (
            "the checkpoint has no language model to ask; by vocabulary the texts are "
            f"{'like' if is_like else 'unlike'} its own ({above:.2f} bits apart, up to "
            f"{LIKE_DIVERGENCE} is like)"
        )
    return True, "nothing tells how like the checkpoint's own the texts are; taken as like"


def _choice(is_few: bool, is_like: bool, n_layers: int) -> tuple[dict[str, Any], str]:
    if is_few and is_like:
        return {"strategy": "head"}, "few examples can't better layers that know such texts"
    if is_few:
        kept = n_layers // 2
        return (
            {"strategy": "partial", "freeze_layers": kept},
            f"few examples; the first {kept} layers, which are the least special, stay, and the "
            "others learn what is new in these texts",
        )
    if is_like:
        return {"strategy": "full"}, "enough examples to train all that already knows such texts"
    return (
        {"strategy": "architecture"},
        "enough examples to learn from fresh weights, and little in these to start from",
    )


def _remarks(measured: Measured) -> list[str]:
    """The numbers that decide nothing, and warnings."""
    lines = []
    if measured.valid_loss is not None and measured.own_loss is not None:
        lines.append(
            f"its loss on the validation set of its own run was {measured.valid_loss:.2f}, on "
            f"these texts it is {measured.own_loss:.2f}"
        )
    if measured.divergence is not None:
        lines.append(
            f"vocabulary: {measured.divergence:.2f} bits from the pretraining text's "
            f"(Jensen–Shannon); as many tokens of that text itself are "
            f"{measured.divergence_floor:.2f} from it"
        )
    if measured.unknown > _UNKNOWN:
        lines.append(
            f"warning: the tokenizer does not know {measured.unknown:.0%} of the tokens of these "
            "texts; no strategy mends that: take a checkpoint whose tokenizer knows them"
        )
    return lines
