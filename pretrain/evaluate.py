"""Loss on the validation split."""

import torch

from data_prep.loader import validation_batches
from pretrain.config import PretrainConfig
from pretrain.objectives import OBJECTIVES, predicted_tokens, split
from runtime import dist
from runtime.engine import Engine


def validation_loss(engine: Engine, config: PretrainConfig) -> float:
    """Mean loss in nats per predicted token, over all ranks. Collective."""
    loss_of, ranks = OBJECTIVES[config.objective], engine.ranks
    micro_batch_size = config.micro_batch_size(ranks.world_size)
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    count = 0
    batches = validation_batches(
        config.data.valid_path,
        seq_len=config.data.seq_len,
        batch_size=micro_batch_size,
        max_sequences=config.evaluate.max_sequences or None,
        rank=ranks.rank,
        world_size=ranks.world_size,
        document_boundaries=config.data.packing == "documents",
    )
    with engine.evaluating() as module:
        for batch in batches:
            tokens = int(predicted_tokens(batch))
            (on_device,) = split(batch, batch["input_ids"].shape[0], ranks.device)
            loss = loss_of(module, on_device)
            if tokens:  # the last ranks pad the round with sequences that predict nothing
                total += loss.double() * tokens
                count += tokens
    summed, counted = dist.sum_over_ranks([float(total), count])
    return summed / counted
