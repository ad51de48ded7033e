"""Which peers are compared, and what each is asked to do."""

from typing import NamedTuple


class Row(NamedTuple):
    """One peer in one setting."""

    name: str
    family: str
    peer: str
    precision: str
    compile: bool
    fused: bool
    told: str  # what the precision is of, in words

    @property
    def key(self) -> str:
        """One name for each row."""
        return f"{self.family}: {self.name}"


_MASTERS, _AUTOCAST, _FP32 = "bf16 weights, fp32 masters", "bf16 autocast, fp32 weights", "fp32"


def _ours(family: str, name: str, peer: str, precision: str = "bf16", *, compiles: bool) -> Row:
    told = _FP32 if precision == "fp32" else _MASTERS
    return Row(name, family, peer, precision, compiles, True, told)


def rows(device_type: str) -> list[Row]:
    """Every row: each peer's documented default, and the same precision eager and compiled."""
    on_gpu = device_type == "cuda"
    default = ("bf16", True, True, _AUTOCAST) if on_gpu else ("fp32", False, False, _FP32)
    ours = [
        row
        for family in ("gpt2", "llama")
        for row in (
            _ours(family, "ours", "engine", compiles=True),
            _ours(family, "ours eager", "engine", compiles=False),
            _ours(family, "without DeepSpeed eager", "bare", compiles=False),
            _ours(family, "without DeepSpeed compiled", "bare", compiles=True),
        )
    ]
    return [
        *ours,
        _ours("gpt2", "ours fp32", "engine", "fp32", compiles=True),
        Row("nanoGPT default", "gpt2", "nanogpt", *default),
        Row("nanoGPT eager", "gpt2", "nanogpt", "bf16", False, False, _AUTOCAST),
        Row("nanoGPT compiled", "gpt2", "nanogpt", "bf16", True, True, _AUTOCAST),
        Row("Trainer default", "gpt2", "trainer", "fp32", False, True, _FP32),
        Row("Trainer eager", "gpt2", "trainer", "bf16", False, True, _AUTOCAST),
        Row("Trainer compiled", "gpt2", "trainer", "bf16", True, True, _AUTOCAST),
        Row("litgpt default", "llama", "litgpt", "bf16", True, on_gpu, _AUTOCAST),
        Row("litgpt eager", "llama", "litgpt", "bf16", False, True, _AUTOCAST),
        Row("litgpt compiled", "llama", "litgpt", "bf16", True, True, _AUTOCAST),
        Row("litgpt bf16-true", "llama", "litgpt", "bf16-true", True, True, "bf16, no masters"),
        Row("Trainer compiled", "llama", "trainer", "bf16", True, True, _AUTOCAST),
    ]
