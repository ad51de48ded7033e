"""What a model is made of and what it costs, for a person to read. Imports no torch."""

from collections.abc import Sequence

from model import flops, memory
from model.config import ModelConfig

MASKED_FRACTION = 0.15  # of the tokens that BERT predicts (Devlin et al. 2019)


def describe(
    config: ModelConfig,
    *,
    head: str | None = None,
    seq_len: int | None = None,
    batch_size: int = 1,
    dtype: str = "bf16",
    zero_stage: int = 1,
    n_devices: int = 1,
) -> str:
    """Tables of a model's tensors, FLOPs and memory.

    head: default the family's for pretraining. seq_len: tokens per row, default max_seq_len.
    batch_size: rows of a micro-batch. The rest as in `training_memory`. Raises `ValueError` for a
    head that the family does not have, and for more tokens than a model of learned positions takes.
    """
    head = head or config.lm_head
    seq_len = seq_len or config.max_seq_len
    if config.positions == "learned" and seq_len > config.max_seq_len:
        raise ValueError(
            f"seq_len: got {seq_len}, expected at most max_seq_len={config.max_seq_len} because"
            " positions are learned"
        )
    fraction = MASKED_FRACTION if head in ("masked_lm", "pretraining") else 1.0
    lines = [
        f"{config.family}, {head}, {config.n_layers} layers,"
        f" {flops.parameters(config, head):,} parameters",
        "",
        *_tensors(config, head),
        "",
        *_work(config, head, seq_len, fraction),
        "",
        *_memory(config, head, seq_len, batch_size, dtype, fraction, zero_stage, n_devices),
    ]
    if config.causal:
        size = memory.kv_cache_bytes_per_token(config, dtype)
        lines += ["", f"key/value cache in {dtype}: {bytes_text(size)} per token of a text"]
    return "\n".join(lines)


def _tensors(config: ModelConfig, head: str) -> list[str]:
    total = flops.parameters(config, head)
    rows = [
        (
            part.name,
            " × ".join(map(str, part.shape)),
            f"{part.copies}",
            f"{part.parameters:,}",
            f"{100 * part.parameters / total:.1f}%",
        )
        for part in flops.parts(config, head)
    ]
    return [
        *_table(("tensor", "shape", "copies", "parameters", "share"), rows),
        f"without embeddings and output matrix: {flops.non_embedding_parameters(config, head):,}",
    ]


def _work(config: ModelConfig, head: str, seq_len: int, fraction: float) -> list[str]:
    found = flops.flops_per_token(config, seq_len, head, fraction)
    share = f", {fraction:.0%} of them predicted" if fraction < 1 else ""
    lines = [
        f"training FLOPs per token at {seq_len} tokens{share}",
        f"  attention in full: {found.full:.4g}",
    ]
    if config.causal:
        lines.append(f"  attention causal:  {found.causal:.4g}")
    return lines


def _memory(
    config: ModelConfig,
    head: str,
    seq_len: int,
    batch_size: int,
    dtype: str,
    fraction: float,
    zero_stage: int,
    n_devices: int,
) -> list[str]:
    found = {
        part: memory.training_memory(
            config,
            seq_len,
            batch_size,
            dtype=dtype,
            head=head,
            predicted_fraction=fraction,
            recompute=part,
            zero_stage=zero_stage,
            n_devices=n_devices,
        )
        for part in memory.RECOMPUTE
    }
    rows = [
        (name, *(bytes_text(getattr(each, name)) for each in found.values()))
        for name in (*memory.Memory._fields, "total")  # recomputed or logits, not both
    ]
    devices = f"ZeRO stage {zero_stage} on {n_devices} devices" if n_devices > 1 else "one device"
    return [
        f"memory of a training step, {batch_size} × {seq_len} tokens in {dtype}, {devices}",
        *_table(("what is recomputed:", *found), rows),
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Left-aligned names and right-aligned values."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def bytes_text(size: float) -> str:
    """A number of bytes for a person, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
