"""How large a batch and which learning rate scaling laws advise. Imports no torch."""

# Bi et al. 2024 ("DeepSeek LLM"), equation 1, fitted to runs of up to 2e19 FLOPs: with C the FLOPs
# of training, a batch of 0.2920·C^0.3271 tokens and a rate of 0.3118·C^-0.1250.
_BATCH, _BATCH_POWER = 0.2920, 0.3271
# Times the advised batch from which on it counts as too large; nearer to it the loss hardly depends
# on the batch (the same, figure 3).
MUCH_LARGER = 2.0
_RATE, _RATE_POWER = 0.3118, -0.1250


def advised_tokens(training_flops: float) -> float:
    """Tokens of a batch."""
    return float(_BATCH * training_flops**_BATCH_POWER)


def advised_rate(training_flops: float) -> float:
    """Peak learning rate, to two digits."""
    return float(f"{_RATE * training_flops**_RATE_POWER:.1e}")


def advised_sequences(training_flops: float, seq_len: int, gpus: int) -> int:
    """Sequences of a batch: the advised size, rounded to what `gpus` ranks can share out evenly."""
    target = advised_tokens(training_flops) / seq_len
    per_rank = 1
    # Powers of two per rank leave the micro-batch free.
    while per_rank * gpus * 2**0.5 < target:
        per_rank *= 2
    return per_rank * gpus
