"""Which kernel computes attention: chosen by a table, told at the start, and overridable.

The table is of others' measurements until this project has its own on each card.
"""

from typing import Any, NamedTuple

import torch

from model.config import ModelConfig
from model.config_checks import problem_of_flex
from model.families import AttentionBackend

# Below this cuDNN's attention is not torch's first choice, for good reasons (transformers#48163).
_LEAST_CUDNN = 91500
_FAST_CUDNN = (90, 100)  # compute capabilities
_AMPERE, _WIDEST_FLASH = 80, 256


class Machine(NamedTuple):
    """What the choice depends on, besides the model."""

    device_type: str  # cpu | cuda
    capability: int = 0  # of the GPU: 80, 90, …
    cudnn: int = 0  # its version, as torch tells it

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """Describe the machine that a tensor on `device` is on."""
        if device.type != "cuda":
            return cls(device.type)
        major, minor = torch.cuda.get_device_capability(device)
        library: Any = torch.backends.cudnn
        return cls("cuda", 10 * major + minor, library.version() or 0)


class Choice(NamedTuple):
    """What computes attention, and why."""

    backend: AttentionBackend
    told: str  # in a run's introduction
    because: str
    is_asked_for: bool = False

    def __str__(self) -> str:
        """As a run's introduction says it."""
        return f"attention: {self.told}, because {self.because}"


def choose(
    wanted: AttentionBackend,
    machine: Machine,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    packs_documents: bool,
    has_prefix: bool = False,
) -> Choice:
    """Choose for a model in this precision.

    packs_documents: rows hold isolated documents, or padding that is dropped. has_prefix: of each
    text a part sees itself whole.
    """
    if wanted != "auto":
        return Choice(wanted, wanted, f"attention: {wanted} asks for it", is_asked_for=True)
    if machine.device_type != "cuda":
        return Choice("auto", "torch's kernel for CPUs", "there is no GPU")
    if dtype == torch.float32:
        return Choice("efficient", "memory-efficient", "flash and cuDNN take 16-bit numbers alone")
    if machine.capability < _AMPERE or config.head_dim > _WIDEST_FLASH:
        why = "flash needs compute capability 8.0 and heads of at most 256"
        return Choice("efficient", "memory-efficient", why)
    if has_prefix:
        return _for_prefixes(config)
    if packs_documents and not config.dropout and config.head_dim % 8 == 0:
        return Choice("flash", "flash, varlen", "rows hold texts apart, whose bounds it takes")
    if machine.capability not in _FAST_CUDNN:
        why = "cuDNN's is known to be faster on compute capability 9.0 and 10.0 alone"
        return Choice("flash", "flash", f"{why} (transformers#48163)")
    if machine.cudnn < _LEAST_CUDNN:
        version = f"cuDNN {machine.cudnn} is older than {_LEAST_CUDNN}"
        return Choice("flash", "flash", f"{version}, with which cuDNN's would be faster")
    why = "it is 1.7 to 2.3 times as fast as flash on this generation (transformers#48163)"
    return Choice("cudnn", "cuDNN", why)


def _for_prefixes(config: ModelConfig) -> Choice:
    if (problem := problem_of_flex(config)) is not None:
        return without_flex(problem)
    if config.head_dim.bit_count() != 1:
        return without_flex(f"heads of {config.head_dim}, no power of two, fill its tiles in part")
    why = "it leaves out the tiles that prefixes hide (arXiv:2412.05496; not measured here)"
    return Choice("flex", "FlexAttention", why)


def without_flex(problem: str) -> Choice:
    """What the table falls back to where FlexAttention cannot be taken."""
    why = f"prefixes need masks, which flash has not, and not FlexAttention, because {problem}"
    return Choice("efficient", "memory-efficient", why)


def use(choice: Choice) -> None:
    """Make it what torch's `scaled_dot_product_attention` takes, in this process.

    One that the table chose leaves the slower ones as a way out for shapes that it cannot take; one
    that was asked for leaves none. FlexAttention is none of them, and leaves generation to them.
    """
    flags: Any = torch.backends.cuda
    switches = {
        "cudnn": flags.enable_cudnn_sdp,
        "flash": flags.enable_flash_sdp,
        "efficient": flags.enable_mem_efficient_sdp,
        "math": flags.enable_math_sdp,
    }
    for name, switch in switches.items():
        # cuDNN comes first in torch's own order, so it is off where another one is faster.
        is_slower = name == "cudnn" and choice.backend in ("flash", "efficient", "flex")
        is_only = choice.is_asked_for and choice.backend != "flex"
        switch(name == choice.backend if is_only else not is_slower)
