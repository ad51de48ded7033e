"""Parameters, FLOPs and model FLOPs utilisation, from the config alone. Imports no torch."""

from typing import NamedTuple

from model.config import ModelConfig

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
    """A quantity in both conventions: attention in full, or causal (the masked half left out)."""

    full: float
    causal: float


def parts(config: ModelConfig, head: str = "causal_lm") -> list[Part]:
    """List every kind of parameter tensor of a model."""
    d, layers = config.d_model, config.n_layers
    heads_width = config.n_heads * config.head_dim
    packed = heads_width + 2 * config.n_kv_heads * config.head_dim
    up_name, up = ("gate_up", 2 * config.d_ff) if config.mlp == "swiglu" else ("up", config.d_ff)
    matrices = [
        Part("attention.qkv", (packed, d), layers),
        Part("attention.output", (d, heads_width), layers),
        Part(f"mlp.{up_name}", (up, d), layers),
        Part("mlp.down", (d, config.d_ff), layers),
    ]
    found = [Part("token_embedding", (config.vocab_size, d), 1)]
    if config.positions == "learned":
        found.append(Part("position_embedding", (config.max_seq_len, d), 1))
    found += matrices
    if config.bias:
        found += [Part(f"{part.name}.bias", part.shape[:1], layers) for part in matrices]
    vectors = 2 if config.norm == "layernorm" else 1
    found.append(Part("norms", (d,), vectors * (2 * layers + 1)))
    if head == "sequence":
        found.append(Part("score", (config.num_labels, d), 1))
    elif not config.tie_embeddings:
        found.append(Part("unembedding", (config.vocab_size, d), 1))
    return found


def parameters(config: ModelConfig, head: str = "causal_lm") -> int:
    """Count all parameters; a tied output matrix counts once."""
    return sum(part.parameters for part in parts(config, head))


def non_embedding_parameters(config: ModelConfig) -> int:
    """Count parameters without embeddings and output matrix, tied or not (Kaplan et al. 2020)."""
    outside = {"token_embedding", "position_embedding", "unembedding"}
    return sum(part.parameters for part in parts(config) if part.name not in outside)


def flops_per_token(config: ModelConfig, seq_len: int) -> Flops:
    """FLOPs to train a causal language model on one token: forward and backward, none twice.

    6 per weight of every matrix product, the output matrix included, and
    12·n_layers·(n_heads·head_dim)·T for attention's two products (Chowdhery et al. 2022, appendix
    B), half of that counted causally.
    """
    matrices = sum(
        part.parameters
        for part in parts(config)
        if part.name.startswith(("attention.", "mlp.")) and len(part.shape) == 2
    )
    dense = 6.0 * (matrices + config.vocab_size * config.d_model)
    attention = 12.0 * config.n_layers * config.n_heads * config.head_dim * seq_len
    return Flops(dense + attention, dense + attention / 2)


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
) -> Flops | None:
    """Fraction of the devices' peak that `tokens_per_second`, over all devices, makes use of.

    Returns both conventions, or None for a device or dtype that is not in the table.
    """
    peak = peak_flops(device_name, dtype)
    if peak is None:
        return None
    per_token = flops_per_token(config, seq_len)
    rate = tokens_per_second / (peak * n_devices)
    return Flops(per_token.full * rate, per_token.causal * rate)
