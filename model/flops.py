"""Parameters, FLOPs and model FLOPs utilisation, from the config alone. Imports no torch."""

from typing import NamedTuple

from model.config import ModelConfig
from model.families import OF_TEXT

# Dense peak rates in TFLOP/s at the accelerator's stated clocks (vendors' data sheets; numbers
# "with sparsity" halved), by the exact name that torch.cuda.get_device_name() returns. Exact,
# because look-ups by substring have counted an H200 as an A100: an unknown device has no MFU, never
# a guess.
_AMPERE = {"bf16": 312.0, "fp16": 312.0}
_HOPPER_SXM = {"bf16": 989.0, "fp16": 989.0}
_HOPPER_NVL = {"bf16": 835.0, "fp16": 835.0}
PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA A100-PCIE-40GB": _AMPERE,
    "NVIDIA A100 80GB PCIe": _AMPERE,
    "NVIDIA A800-SXM4-80GB": _AMPERE,
    "NVIDIA H100 80GB HBM3": _HOPPER_SXM,
    "NVIDIA H100 PCIe": {"bf16": 756.0, "fp16": 756.0},
    "NVIDIA H100 NVL": _HOPPER_NVL,
    "NVIDIA H800": _HOPPER_SXM,
    "NVIDIA H200": _HOPPER_SXM,
    "NVIDIA H200 NVL": _HOPPER_NVL,
    "NVIDIA GH200 480GB": _HOPPER_SXM,
    "NVIDIA B200": {"bf16": 2250.0, "fp16": 2250.0},
    "NVIDIA L40S": {"bf16": 362.0, "fp16": 362.0},
    "NVIDIA L4": {"bf16": 121.0, "fp16": 121.0},
    "NVIDIA GeForce RTX 3090": {"bf16": 71.0, "fp16": 71.0},
    "NVIDIA GeForce RTX 4090": {"bf16": 165.0, "fp16": 165.0},
    "Tesla V100-SXM2-16GB": {"fp16": 125.0},
    "Tesla V100-SXM2-32GB": {"fp16": 125.0},
    "Tesla V100-PCIE-16GB": {"fp16": 112.0},
    "Tesla V100-PCIE-32GB": {"fp16": 112.0},
    "Tesla T4": {"fp16": 65.0},
}


class Part(NamedTuple):
    """One kind of tensor: `copies` of `shape`."""

    name: str
    shape: tuple[int, ...]
    copies: int

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        total = self.copies
        for size in self.shape:
            total *= size
        return total


class Flops(NamedTuple):
    """A quantity in both conventions: attention in full, or only what a token may see."""

    full: float
    causal: float


def parts(config: ModelConfig, head: str | None = None) -> list[Part]:
    """List every kind of parameter tensor of the model that `build(config, head)` makes.

    head: default the family's for pretraining. Rows that fill up the vocabulary in memory are
    counted. Raises `ValueError` for a head that the family does not have.
    """
    head = head or config.lm_head
    if head not in config.heads:
        raise ValueError(
            f"head: got {head!r}, expected one of {', '.join(config.heads)}, which family"
            f"={config.family!r} has"
        )
    found = [*_embeddings(config), *_block(config), *_norms(config), *_head(config, head)]
    return [part for part in found if part.copies]


def _embeddings(config: ModelConfig) -> list[Part]:
    d = config.d_model
    found = [Part("token_embedding", (config.padded_vocab_size, d), 1)]
    if config.positions == "learned":
        rows = config.max_seq_len + config.position_offset
        found.append(Part("position_embedding", (rows, d), 1))
    if config.type_vocab_size:
        found.append(Part("type_embedding", (config.type_vocab_size, d), 1))
    return found


def _block(config: ModelConfig) -> list[Part]:
    d, d_ff, layers = config.d_model, config.d_ff, config.n_layers
    width = config.n_heads * config.head_dim
    packed = width + 2 * config.n_kv_heads * config.head_dim
    up = Part("mlp.gate_up", (2 * d_ff, d), layers)
    attention = [
        Part("attention.qkv", (packed, d), layers),
        Part("attention.output", (d, width), layers),
    ]
    mlp = [
        up if config.is_gated else Part("mlp.up", (d_ff, d), layers),
        Part("mlp.down", (d, d_ff), layers),
    ]
    biased = [*(attention if config.bias else []), *(mlp if config.mlp_bias else [])]
    return [
        *attention,
        *mlp,
        *(Part(f"{part.name}.bias", part.shape[:1], layers) for part in biased),
        Part("attention.qk_norm", (config.head_dim,), 2 * layers if config.qk_norm else 0),
    ]


def _norm_vectors(config: ModelConfig) -> int:
    return 2 if config.norm == "layernorm" and config.norm_bias else 1


def _norms(config: ModelConfig) -> list[Part]:
    is_pre = config.norm_place == "pre"
    # Pre-norm has one after the last block, and none before the first where the embedding has one.
    norms = 2 * config.n_layers + is_pre + config.embedding_norm
    norms -= config.embedding_norm and is_pre
    return [Part("norms", (config.d_model,), _norm_vectors(config) * norms)]


def _head(config: ModelConfig, head: str) -> list[Part]:
    d, rows = config.d_model, config.padded_vocab_size
    is_modern = config.family == "modernbert"
    transform = [
        Part("transform", (d, d), 1),
        Part("transform.bias", (d,), 0 if is_modern else 1),
        Part("transform.norm", (d,), _norm_vectors(config)),
    ]
    pooler = [Part("pooler", (d, d), 1), Part("pooler.bias", (d,), 1)]
    if head in ("causal_lm", "masked_lm", "pretraining"):
        output = Part("unembedding", (rows, d), 0 if config.tie_embeddings else 1)
        if head == "causal_lm":
            return [output]
        pair = [*pooler, Part("pair_score", (2, d), 1), Part("pair_score.bias", (2,), 1)]
        bias = Part("output_bias", (rows,), 1)
        return [output, *transform, bias, *(pair if head == "pretraining" else [])]
    classes = {"span": 2, "choice": 1}.get(head, config.num_labels)
    is_of_text = head in OF_TEXT
    is_biased = not (is_of_text and config.causal)
    before = transform if is_modern else pooler if is_of_text and not config.causal else []
    return [
        *before,
        Part("score", (classes, d), 1),
        Part("score.bias", (classes,), 1 if is_biased else 0),
    ]


def parameters(config: ModelConfig, head: str | None = None) -> int:
    """Count all parameters; a tied output matrix counts once."""
    return sum(part.parameters for part in parts(config, head))


def non_embedding_parameters(config: ModelConfig, head: str | None = None) -> int:
    """Count parameters without embeddings and output matrix, tied or not (Kaplan et al. 2020)."""
    outside = {"token_embedding", "position_embedding", "type_embedding", "unembedding"}
    return sum(part.parameters for part in parts(config, head) if part.name not in outside)


def flops_per_token(
    config: ModelConfig,
    seq_len: int,
    head: str | None = None,
    predicted_fraction: float = 1.0,
) -> Flops:
    """FLOPs to train a model on one token: forward and backward, none twice.

    6 per weight of every matrix product that a token takes part in (Kaplan et al. 2020), the output
    matrix included, and 12·(n_heads·head_dim) for each layer and each pair of a query and a key
    (Chowdhery et al. 2022, appendix B); see `attention_pairs`. predicted_fraction: share of the
    tokens that the head of masked_lm and pretraining is computed on, or that causal_lm predicts.
    Heads that look at one token of a text count for a text of `seq_len` tokens. Rows that only fill
    up the vocabulary are no work.
    """
    head = head or config.lm_head
    size = {part.name: part.parameters for part in parts(config, head)}
    trunk = sum(
        part.parameters
        for part in _block(config)
        if part.name.startswith(("attention.", "mlp.")) and len(part.shape) == 2
    )
    per_token = trunk + _head_weights(config, head, size, predicted_fraction, seq_len)
    per_pair = 12.0 * config.n_heads * config.head_dim
    full, causal = (
        sum(
            attention_pairs(config, layer, seq_len, in_full=in_full)
            for layer in range(config.n_layers)
        )
        / seq_len
        for in_full in (True, False)
    )
    return Flops(6.0 * per_token + per_pair * full, 6.0 * per_token + per_pair * causal)


def _head_weights(
    config: ModelConfig, head: str, size: dict[str, int], predicted_fraction: float, seq_len: int
) -> float:
    """Weights of the head that one token meets, on average."""
    transform, pooler = size.get("transform", 0), size.get("pooler", 0)
    if head in ("causal_lm", "masked_lm", "pretraining"):
        output = config.vocab_size * config.d_model
        per_text = pooler + size.get("pair_score", 0)
        return predicted_fraction * (transform + output) + per_text / seq_len
    per_prediction = transform + pooler + size["score"]
    return per_prediction / seq_len if head in OF_TEXT else per_prediction


def attention_pairs(config: ModelConfig, layer: int, seq_len: int, *, in_full: bool) -> int:
    """Pairs of a query and a key in one layer of one text.

    in_full: as many keys for each query as a kernel for the layer's window computes without looking
    at causality: all, or the window. Otherwise exactly those that a causal model may see; one that
    sees both sides sees them all.
    """
    window = config.window_of(layer)
    # A window of both sides has the token itself in the middle.
    reach = seq_len if window is None else min(seq_len, window + (not config.causal))
    if in_full or not config.causal:
        return seq_len * reach
    return seq_len * reach - reach * (reach - 1) // 2


def peak_flops(device_name: str, dtype: str = "bf16") -> float | None:
    """Peak dense FLOP/s of one device in "bf16" or "fp16"; None for a device not in the table."""
    rate = PEAK_TFLOPS.get(device_name, {}).get(dtype)
    return None if rate is None else rate * 1e12


def mfu(
    tokens_per_second: float,
    config: ModelConfig,
    seq_len: int,
    device_name: str,
    n_devices: int = 1,
    dtype: str = "bf16",
    *,
    head: str | None = None,
    predicted_fraction: float = 1.0,
) -> Flops | None:
    """Fraction of the devices' peak that `tokens_per_second`, over all devices, makes use of.

    Returns both conventions, or None for a device or dtype that is not in the table. The rest as in
    `flops_per_token`.
    """
    peak = peak_flops(device_name, dtype)
    if peak is None:
        return None
    per_token = flops_per_token(config, seq_len, head, predicted_fraction)
    rate = tokens_per_second / (peak * n_devices)
    return Flops(per_token.full * rate, per_token.causal * rate)
