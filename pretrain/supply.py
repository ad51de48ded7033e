"""How far the data of a config lasts. Torch-free."""

from typing import NamedTuple

from data_prep.order import Mixing, Order
from data_prep.shards import Shards
from pretrain.checks import check_supply
from pretrain.config import PretrainConfig
from pretrain.objectives.traits import layout_for

_MOST_DOCUMENTS = 2_000_000  # packed in about a second; of more the number of rows is reckoned


class Supply(NamedTuple):
    """Of each source, in the order of data.train, and of all."""

    tokens: list[int]
    documents: list[int]
    epochs: list[float]  # passes through each source that the run makes
    utilisation: float  # share of the positions that holds tokens
    order: Order | None  # None where it was only reckoned


def supply_of(config: PretrainConfig, sources: list[Shards]) -> Supply:
    """What the run takes of its data. Raises UserError where that is not enough."""
    layout = layout_for(config)
    tokens, documents = [one.tokens for one in sources], [len(one) for one in sources]
    bounded = any(source.max_repetition is not None for source in config.data.sources)
    if layout.by_document and sum(documents) > _MOST_DOCUMENTS and not bounded:
        return _reckoned(config, tokens, documents, layout.overhead)
    mixing = Mixing(
        tuple(source.weight for source in config.data.sources),
        tuple(source.max_repetition for source in config.data.sources),
        tuple((stage.from_step, stage.weights) for stage in config.data.stages),
    )
    order = Order(
        sources,
        layout,
        mixing,
        global_batch_size=config.batch.global_batch_size,
        seed=config.run.seed,
        ramp=config.batch.sizes.ramp,
    )
    check_supply(config, order)
    used = order.packing_report(count_cut=False).utilisation
    return Supply(tokens, documents, order.epochs(config.total_steps), used, order)


def _reckoned(
    config: PretrainConfig, tokens: list[int], documents: list[int], overhead: int
) -> Supply:
    """As if rows were filled to the last position, and no weight ever changed."""
    positions = config.positions(config.total_steps)
    weights = [source.weight for source in config.data.sources]
    epochs = [
        positions * weight / sum(weights) / max(1, count + overhead * number)
        for weight, count, number in zip(weights, tokens, documents, strict=True)
    ]
    used = sum(tokens) / max(1, sum(tokens) + overhead * sum(documents))
    return Supply(tokens, documents, epochs, used, None)
