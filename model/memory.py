"""Memory of a training step and of generation, from the config alone. Imports no torch.

Weights, gradients and optimizer: Rajbhandari et al. 2020 ("ZeRO"), §3.1 and §5. Activations:
Korthikanti et al. 2022 ("Reducing Activation Recomputation"), §4.1, counted anew for what the
backward pass of this code keeps: fused attention keeps queries, keys, values and its output, and
none of the T² scores; fused norms keep their input; nothing keeps masks where dropout is 0. A layer
of GPT-2 comes to 16·d_model numbers per token: their 34·s·b·h bytes less two for masks.
"""

from typing import Literal, NamedTuple, get_args

from model import chunks
from model.config import ModelConfig
from model.families import DROPS_ATTENTION_ONLY, OF_TEXT
from model.flops import parameters

Recompute = Literal["none", "block", "attention", "mlp"]
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STATISTICS = 8  # mean and 1/std of a norm, fp32


class Memory(NamedTuple):
    """Bytes on one device at the peak of a step, by what they hold."""

    weights: float
    gradients: float
    optimizer: float  # fp32 master weights and moments
    activations: float  # kept for the backward pass
    recomputed: float  # of the layer that the backward pass has come to
    logits: float  # of the loss over the vocabulary, gone before the first layer's gradients

    @property
    def total(self) -> float:
        """What is there at once; buffers of communication and gaps of the allocator are not in."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.activations + max(self.recomputed, self.logits)


class _Layer(NamedTuple):
    """Bytes per token that the backward pass of one layer needs."""

    stream: float  # what enters its branches, and their sums
    attention: float  # inside of the branch
    mlp: float

    def inside(self, recompute: Recompute) -> float:
        """What a branch that is computed again does not keep."""
        return {"attention": self.attention, "mlp": self.mlp}.get(recompute, 0.0)


def training_memory(
    config: ModelConfig,
    seq_len: int,
    batch_size: int = 1,
    *,
    dtype: str = "bf16",
    head: str | None = None,
    predicted_fraction: float = 1.0,
    recompute: Recompute = "none",
    zero_stage: int = 1,
    n_devices: int = 1,
    device_type: str = "cuda",
    moments: int = 2,
) -> Memory:
    """Bytes of a training step on one of `n_devices`.

    seq_len, batch_size: tokens per row and rows of one micro-batch. dtype: of weights, gradients
    and activations: "fp32", "bf16" or "fp16". predicted_fraction: as in `flops_per_token`.
    recompute: as in `Transformer.set_recompute`. zero_stage: 1 divides the optimizer's states among
    the devices, 2 the gradients too, 3 the weights too. device_type: cuda or cpu, which cut the
    scores into chunks of different sizes.
    moments: of the optimizer: Adam has two, Lion one.
    Raises `ValueError` for a head that the family does not have.
    """
    size, width = parameters(config, head), BYTES[dtype]
    weights, gradients, states = (n_devices if zero_stage >= stage else 1 for stage in (3, 2, 1))
    # Without ZeRO, the optimizer works on fp32 weights themselves; every stage keeps a second copy.
    masters = 0 if dtype == "fp32" and zero_stage == 0 else 4
    optimizer = masters + 4 * moments
    tokens = seq_len * batch_size
    kept = activation_bytes_per_token(
        config,
        dtype=dtype,
        head=head,
        predicted_fraction=predicted_fraction,
        recompute=recompute,
    )
    scored = loss_memory(
        config, round(predicted_fraction * tokens), dtype=dtype, head=head, device_type=device_type
    )
    return Memory(
        size * width / weights,
        size * width / gradients,
        size * optimizer / states,
        tokens * kept,
        tokens * recomputed_bytes_per_token(config, dtype, recompute),
        scored.total,
    )


def activation_bytes_per_token(
    config: ModelConfig,
    *,
    dtype: str = "bf16",
    head: str | None = None,
    predicted_fraction: float = 1.0,
    recompute: Recompute = "none",
) -> float:
    """Bytes per token that the forward pass keeps for the backward pass, without logits."""
    size = BYTES[dtype]
    layers = [_layer(config, layer, size) for layer in range(config.n_layers)]
    if recompute == "block":
        blocks = float(config.n_layers * config.d_model * size)  # what enters each
    else:
        blocks = sum(sum(layer) - layer.inside(recompute) for layer in layers)
    return blocks + _embedding(config, size) + _head(config, size, head, predicted_fraction)


def recomputed_bytes_per_token(
    config: ModelConfig, dtype: str = "bf16", recompute: Recompute = "none"
) -> float:
    """Bytes per token that the backward pass makes again, for one layer at a time."""
    layers = [_layer(config, layer, BYTES[dtype]) for layer in range(config.n_layers)]
    if recompute == "block":
        return max(sum(layer) for layer in layers)
    return max(layer.inside(recompute) for layer in layers)


class LossMemory(NamedTuple):
    """Bytes of the loss over the vocabulary, as `model.kernels.linear_cross_entropy` has them."""

    matrix: float  # the fp32 gradient of the output matrix, until the backward pass begins
    hidden: float  # that of the hidden states, there before they can be let go of
    scores: float  # a chunk's, or what follows after the last chunk where that is more

    @property
    def total(self) -> float:
        """What is there at once, besides the hidden states."""
        return sum(self)


def loss_memory(
    config: ModelConfig,
    n_rows: int,
    *,
    dtype: str = "bf16",
    head: str | None = None,
    device_type: str = "cuda",
) -> LossMemory:
    """Bytes of the scores of `n_rows` tokens and of their gradients, a chunk at a time.

    Heads of a few classes count for nothing.
    """
    if (head or config.lm_head) not in ("causal_lm", "masked_lm", "pretraining"):
        return LossMemory(0, 0, 0)
    size, n_classes = BYTES[dtype], config.padded_vocab_size
    matrix, hidden = n_classes * config.d_model, n_rows * config.d_model * size
    chunk = chunks.equal(n_rows, chunks.chunk_rows(device_type, n_classes))
    block = min(chunk, chunks.block_rows(device_type, n_classes))
    copies = 4 * block * n_classes * (1 if dtype == "fp32" else 2)  # in fp32, and log-probabilities
    scores = chunk * n_classes * size + copies
    return LossMemory(4 * matrix, hidden, max(scores, matrix * size + hidden))


def kv_cache_bytes_per_token(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes that generation keeps for each token of a text: keys and values of every layer."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * BYTES[dtype]


def _layer(config: ModelConfig, layer: int, size: int) -> _Layer:
    d, is_pre = config.d_model, config.norm_place == "pre"
    mask = _mask(config)
    # Pre: the norms' inputs, whose results lie in the branches. Post: the branches' inputs, and the
    # sums that the norms take.
    has_norm = not (layer == 0 and is_pre and config.embedding_norm)
    stream = (2 if is_pre else 4) * d * size + (1 + has_norm) * _STATISTICS
    query, both = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention = query + 2 * both + query  # packed QKV, and the mixed values
    if config.positions == "rotary":
        attention += query + both  # turned queries and keys; values stay in the packed tensor
    log_sums = 4 * config.n_heads
    inner = {"relu": 1, "relu2": 2}.get(config.mlp, 4 if config.is_gated else 2) * config.d_ff
    normed = d if is_pre else 0
    return _Layer(
        stream,
        (attention + normed * has_norm) * size + log_sums + mask,
        (inner + normed) * size + mask,
    )


def _embedding(config: ModelConfig, size: int) -> float:
    norm = config.d_model * size + _STATISTICS if config.embedding_norm else 0
    return norm + _mask(config)


def _mask(config: ModelConfig) -> int:
    """Bytes per token of one dropout's mask; dropout inside attention keeps none."""
    has_one = config.dropout > 0 and config.family not in DROPS_ATTENTION_ONLY
    return config.d_model if has_one else 0


def _head(config: ModelConfig, size: int, head: str | None, predicted_fraction: float) -> float:
    head, d = head or config.lm_head, config.d_model
    last_norm = d * size + _STATISTICS if config.norm_place == "pre" else 0
    if head in OF_TEXT:
        return last_norm  # of one token per text next to nothing more
    transform = 3 * d * size + _STATISTICS
    if head in ("masked_lm", "pretraining"):
        return last_norm + predicted_fraction * (d * size + transform)
    is_transformed = config.family == "modernbert"
    return last_norm + d * size + (transform if is_transformed else 0)
