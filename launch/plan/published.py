"""Published runs: what was trained, on what, how, and how fast. Data with sources, torch-free.

What a code base costs (SOFTWARE) is read off its sources as far as they say: which attention
kernel, what is fused, when gradients are reduced. Traffic of unfused code is counted by hand.
A run that leaves open what its speed depends on says in `assumed` what stands in its place. Those
that no layout of this toolkit describes are listed in NOT_COMPARED with the reason.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from launch.estimate.devices import Device, find
from launch.estimate.software import COMPILED, EAGER, Software
from launch.plan.published_foundry import ROWS
from model.config import ModelConfig
from model.memory import Recompute
from model.presets import preset


class Run(NamedTuple):
    """One row of somebody's table."""

    system: str  # whose code
    model: str  # of SHAPES
    gpu: str  # of GPUS
    gpus: int
    seq_len: int  # tokens
    micro_batch_size: int  # sequences
    accumulation_steps: int
    tokens_per_second: float  # per GPU
    zero_stage: int = 3  # or what shards the same: FSDP's full sharding is 3
    recompute: Recompute = "none"
    source: str = ""
    assumed: str = ""  # what the source leaves open
    is_calibrated: bool = False  # whether the model's constants were set with its help
    gpus_per_node: int = 8
    sequence_parallel: int = 1
    shard_ranks: int | None = None  # FSDP's hybrid sharding shards within these
    precision: str = "bf16"
    predicted_fraction: float = 1.0


# Gathers a layer at a time, reduce-scatters while the backward pass goes on.
_FSDP = EAGER._replace(gather_numbers=None, is_reduce_scatter=True, hides_gradients=True)
# A Llama in plain PyTorch: norms in fp32 of five kernels each, rotary embedding in fp32.
_UNFUSED = _FSDP._replace(passes=10.0, attention="flash2")
_COMPILED = _FSDP._replace(
    passes=COMPILED.passes,
    logit_bytes=COMPILED.logit_bytes,
    host_s=COMPILED.host_s,
    attention="flash2",
)
# Everything between products in hand-written kernels; scores over the vocabulary never in fp32.
_FUSED = _COMPILED._replace(logit_bytes=8.0, host_s=0.05e-3, attention="torch")
SOFTWARE: dict[str, Software] = {
    "llm-foundry": _FSDP._replace(attention="flash1"),  # attn_impl: triton
    "llm.c": _FUSED,
    "flash-attention": _FUSED._replace(attention="flash1", host_s=0.25e-3),  # of before the second
    "nanochat": _FUSED._replace(hides_gradients=False, logit_bytes=16.0, host_s=0.25e-3),
    "torchtitan": _UNFUSED,
    "torchtitan, compiled": _COMPILED,
    "fms-fsdp": _UNFUSED,
    "fms-fsdp, compiled": _COMPILED,
    "AutoModel": _FUSED._replace(logit_bytes=16.0, host_s=0.25e-3),  # Transformer Engine
    "KempnerForge": _UNFUSED._replace(attention="torch"),
    "KempnerForge, compiled": _COMPILED._replace(attention="torch"),
    "nanoGPT": _COMPILED,
    "Hugging Face": EAGER._replace(passes=12.0, attention="flash1"),  # attention in plain PyTorch
}


def _gpt(n_layers: int, n_heads: int, d_model: int, **more: Any) -> ModelConfig:
    """A GPT as nearly everybody trains it: GPT-2's shape, the vocabulary padded to 64."""
    shape = {
        "family": "custom",
        "causal": True,
        "positions": "learned",
        "norm": "layernorm",
        "norm_place": "pre",
        "mlp": "gelu",
        "bias": True,
        "tie_embeddings": True,
        "vocab_size": 50304,
        "max_seq_len": 16384,
    }
    size = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
    return ModelConfig.model_validate({**shape, **size, **more})


def _mpt(n_layers: int, n_heads: int, d_model: int) -> ModelConfig:
    return _gpt(n_layers, n_heads, d_model, bias=False, norm_bias=False, vocab_size=50368)


def _nanochat(depth: int) -> ModelConfig:
    modern = {"positions": "rotary", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True}
    return _gpt(
        depth, depth // 2, 64 * depth, bias=False, tie_embeddings=False, vocab_size=32768, **modern
    )


_LLAMA_13B = {"n_layers": 40, "n_heads": 40, "n_kv_heads": 8, "d_model": 5120, "d_ff": 17920}
SHAPES: dict[str, ModelConfig] = {
    "MPT-125m": _mpt(12, 12, 768),
    "MPT-350m": _mpt(24, 16, 1024),
    "MPT-760m": _mpt(24, 12, 1536),
    "MPT-1b": _mpt(24, 16, 2048),
    "MPT-3b": _mpt(32, 20, 2560),
    "MPT-7b": _mpt(32, 32, 4096),
    "MPT-13b": _mpt(40, 40, 5120),
    "MPT-30b": _mpt(48, 56, 7168),
    "MPT-70b": _mpt(80, 64, 8192),
    "GPT-2 124M": _gpt(12, 12, 768),
    "GPT-2 350M": _gpt(24, 16, 1024),
    "GPT-2 774M": _gpt(36, 20, 1280),
    "GPT-2 1558M": _gpt(48, 25, 1600),
    "GPT3-760M": _gpt(24, 16, 1536),
    "GPT3-1.3B": _gpt(24, 16, 2048),
    "GPT3-2.7B": _gpt(32, 20, 2560),
    "nanochat d24": _nanochat(24),
    "nanochat d26": _nanochat(26),
    "Llama-2-7B": preset("llama-2-7b"),
    "Llama-2-13B": preset("llama-2-13b"),
    "Llama-34B": preset("llama-2-70b", n_layers=48, d_ff=22016),
    "Llama-2-70B": preset("llama-2-70b"),
    "Llama-3-8B": preset("llama-3-8b"),
    "Llama-3-13B": preset("llama-3-8b", **_LLAMA_13B),
    "Llama-3-70B": preset("llama-3-70b"),
    "BERT-base": preset("bert-base"),
    "BERT-large": preset("bert-large"),
}


def _grand_teton() -> Device:
    """An H100 held to 500 of 700 W; its clock goes with the cube root of the power."""
    h100 = find("h100")
    slower = (500 / 700) ** (1 / 3)
    peak = {precision: slower * rate for precision, rate in h100.peak.items()}
    return h100._replace(name="h100-500w", bandwidth=2.4e12, peak=peak, watts=500)


GPUS: dict[str, Device] = {
    **{name: find(name) for name in ("h100", "h200", "a100-80gb", "a100-40gb", "v100-32")},
    "h100-500w": _grand_teton(),
}
_LLMC = "karpathy/llm.c, scripts/run_gpt2_{}.sh at 039904e"
_RECORD = "KellerJordan/modded-nanogpt, README, its baseline: time ÷ tokens of the whole run"
_TITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md at 31a17bf"
_FMS = "foundation-model-stack/fms-fsdp, README at 0d31998"
_FMS_LATER = "foundation-model-stack/fms-fsdp, README of 2024"
_KEMPNER = "KempnerInstitute/KempnerForge, benchmarks/mfu_scaling at 9f3f03a"
_FLASH = "Dao-AILab/flash-attention, training/README.md at 0b037c2"
_FLASH_OPEN = "micro-batch as large as fits; gradients reduced as in ZeRO-1"
_FMS_OPEN = "micro-batch, sharding and recomputing as in its table for A100s"

_OTHERS = (
    Run("llm.c", "GPT-2 124M", "a100-80gb", 8, 1024, 64, 1, 218_453, 1,
        source=_LLMC.format("124M")),
    Run("llm.c", "GPT-2 350M", "a100-80gb", 8, 1024, 64, 1, 79_922, 1,
        source=_LLMC.format("350M")),
    Run("llm.c", "GPT-2 774M", "a100-80gb", 8, 1024, 32, 2, 38_551, 1, source=_LLMC.format("774M")),
    Run("llm.c", "GPT-2 1558M", "h100", 8, 1024, 16, 8, 46_811, 1, source=_LLMC.format("1558M")),
    Run("llm.c", "GPT-2 124M", "h100", 8, 1024, 64, 1, 463_000, 1, source=_RECORD,
        assumed="batch as in llm.c's own script; 45 minutes are rounded"),
    Run("llm.c", "GPT-2 350M", "h100", 8, 1024, 64, 1, 189_000, 1, source=_RECORD,
        assumed="batch as in llm.c's own script; 5.8 hours are rounded"),
    Run("flash-attention", "GPT-2 124M", "a100-80gb", 8, 2048, 32, 1, 163_750, 1, source=_FLASH,
        assumed=_FLASH_OPEN),
    Run("flash-attention", "GPT-2 350M", "a100-80gb", 8, 2048, 16, 2, 62_875, 1, source=_FLASH,
        assumed=_FLASH_OPEN),
    Run("flash-attention", "GPT3-760M", "a100-80gb", 8, 2048, 16, 2, 30_625, 1, source=_FLASH,
        assumed=_FLASH_OPEN),
    Run("flash-attention", "GPT3-1.3B", "a100-80gb", 8, 2048, 8, 8, 21_125, 1, source=_FLASH,
        assumed=_FLASH_OPEN),
    Run("flash-attention", "GPT3-2.7B", "a100-80gb", 8, 2048, 4, 16, 10_625, 1, source=_FLASH,
        assumed=_FLASH_OPEN),
    Run("nanochat", "nanochat d24", "h100", 8, 2048, 16, 2, 99_979, 2,
        source="karpathy/nanochat, dev/LEADERBOARD.md, run 1: 16,704 × 524,288 tokens in 10,949 s",
        assumed="full attention; Muon's products and value embeddings left out"),
    Run("nanochat", "nanochat d26", "h100", 8, 2048, 16, 2, 78_800, 2,
        source="karpathy/nanochat, dev/LOG.md of 2026-02-02, bf16",
        assumed="full attention; Muon's products and value embeddings left out"),
    Run("nanoGPT", "GPT-2 124M", "h100", 8, 1024, 64, 1, 375_000, 1,
        source="jjschwartz.github.io, scaling-gpt2", assumed="compiled; micro-batch 64"),
    Run("torchtitan", "Llama-3-8B", "h100-500w", 8, 8192, 2, 1, 5_762, 3, "attention", _TITAN,
        "selective recomputing is that of attention"),
    Run("torchtitan", "Llama-3-8B", "h100-500w", 128, 8192, 2, 1, 5_605, 3, "attention", _TITAN,
        "selective recomputing is that of attention"),
    Run("torchtitan, compiled", "Llama-3-8B", "h100-500w", 8, 8192, 2, 1, 6_667, 3, "attention",
        _TITAN, "selective recomputing is that of attention"),
    Run("torchtitan, compiled", "Llama-3-8B", "h100-500w", 128, 8192, 2, 1, 6_514, 3, "attention",
        _TITAN, "selective recomputing is that of attention"),
    Run("fms-fsdp", "Llama-2-7B", "a100-80gb", 128, 4096, 2, 1, 3_760, source=_FMS, shard_ranks=8),
    Run("fms-fsdp", "Llama-2-13B", "a100-80gb", 128, 4096, 1, 1, 1_700, source=_FMS, shard_ranks=8),
    Run("fms-fsdp", "Llama-34B", "a100-80gb", 128, 4096, 8, 1, 772, 3, "block", _FMS),
    Run("fms-fsdp", "Llama-2-70B", "a100-80gb", 128, 4096, 6, 1, 380, 3, "block", _FMS),
    Run("fms-fsdp, compiled", "Llama-2-7B", "a100-80gb", 128, 4096, 2, 1, 4_550, source=_FMS_LATER,
        assumed=_FMS_OPEN, shard_ranks=8),
    Run("fms-fsdp, compiled", "Llama-2-7B", "h100", 96, 4096, 2, 1, 9_600, source=_FMS_LATER,
        assumed=_FMS_OPEN, shard_ranks=8),
    Run("fms-fsdp, compiled", "Llama-2-13B", "h100", 96, 4096, 1, 1, 4_850, source=_FMS_LATER,
        assumed=_FMS_OPEN, shard_ranks=8),
    Run("fms-fsdp, compiled", "Llama-2-70B", "h100", 96, 4096, 6, 1, 890, 3, "block", _FMS_LATER,
        _FMS_OPEN),
    Run("AutoModel", "Llama-3-70B", "h100", 64, 8192, 1, 4, 867, 3, "block",
        "NVIDIA-NeMo/Automodel, docs/performance-summary.mdx at 2861c41",
        "whole blocks computed again; exchanges of the halved sequence left out",
        sequence_parallel=2),
    Run("KempnerForge, compiled", "Llama-3-8B", "h200", 1, 4096, 4, 2, 10_471, 3, "block", _KEMPNER,
        gpus_per_node=4),
    Run("KempnerForge, compiled", "Llama-3-8B", "h200", 2, 4096, 4, 2, 9_364, 3, "block", _KEMPNER,
        gpus_per_node=4),
    Run("KempnerForge, compiled", "Llama-3-8B", "h200", 4, 4096, 4, 2, 9_746, 3, "block", _KEMPNER,
        gpus_per_node=4),
    Run("KempnerForge", "Llama-3-13B", "h200", 8, 4096, 4, 4, 4_426, 3, "block", _KEMPNER,
        "a 400 Gb/s adapter per GPU", gpus_per_node=4),
    Run("Hugging Face", "BERT-base", "a100-80gb", 8, 128, 128, 4, 111_000, 1,
        source="mosaicml/examples, bert/README.md: 286.7 M rows of 128 tokens in 11.5 h",
        assumed="micro-batch 128; scores at every position", gpus_per_node=8),
    Run("Hugging Face", "BERT-large", "v100-32", 1, 128, 64, 1, 23_296, 0,
        source="NVIDIA/DeepLearningExamples, BERT README at 23a6382: 182 rows/s",
        assumed="micro-batch 64; scores at the hidden tokens alone",
        precision="fp16", predicted_fraction=0.15),
    Run("Hugging Face", "BERT-large", "v100-32", 1, 512, 16, 1, 16_384, 0,
        source="NVIDIA/DeepLearningExamples, BERT README at 23a6382: 32 rows/s",
        assumed="micro-batch 16; scores at the hidden tokens alone",
        precision="fp16", predicted_fraction=0.15),
)  # fmt: skip

NOT_COMPARED = {
    "rows in fp8 of torchtitan, llm-foundry, nanochat, Megatron-Bridge, modded-nanogpt":
        "the engine has no fp8",
    "Megatron-LM, 2B to 462B and GPT-3 on up to 6,144 H100":
        "tensor and pipeline parallel; sizes are in a picture only",
    "torchtitan 70B and 405B": "tensor and pipeline parallel",
    "nanotron, 1.3B to 80B on 8 to 512 H100":
        "shapes, sequence length and layouts are not in the picture",
    "OLMo-3 7B and 32B": "tokens ÷ all GPU hours, with restarts",
    "DeepSpeed BERT 1.3B on 64 A100": "shape, sequence length and batch not stated",
    "ModernBERT": "its hours were not verified",
    "MosaicBERT": "\"roughly a third\" of another's time",
}  # fmt: skip


def runs() -> Iterator[Run]:
    """Every run that is compared."""
    for gpu, text in ROWS.items():
        for line in text.split("\n"):
            if not line:
                continue
            model, *numbers = line.split()
            seq_len, gpus, micro, accumulation, again, speed = map(int, numbers)
            yield Run(
                "llm-foundry",
                f"MPT-{model}",
                gpu,
                gpus,
                seq_len,
                micro,
                accumulation,
                speed,
                recompute="block" if again else "none",
                source="mosaicml/llm-foundry, scripts/train/benchmarking/README.md at 061f2c7",
                is_calibrated=_calibrates(gpu, gpus, seq_len, model),
            )
    yield from _OTHERS


def _calibrates(gpu: str, gpus: int, seq_len: int, model: str) -> bool:
    """Rows that set the rate of products on A100 and H100, the overlap, and the stragglers.

    One node and at most 2,048 tokens for the first two, 1b and 760m on several nodes of A100-40GB
    for the last.
    """
    if gpu == "a100-40gb":
        return gpus > 8 and model in ("1b", "760m")
    return gpus == 8 and seq_len <= 2048
