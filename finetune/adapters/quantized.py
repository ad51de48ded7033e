"""A checkpoint's linear maps in 8 or 4 bits under an adapter. The only file for bitsandbytes.

8 bits: LLM.int8() (Dettmers et al. 2022); 4 bits: NF4 with its scales quantised, too (Dettmers et
al. 2023). Embeddings, norms and heads stay as they are.
"""

import logging
from typing import Any

from torch import nn

from finetune.adapters.config import Bits
from model.heads import Model
from runtime.errors import EXIT_BAD_INPUT, UserError


def quantise(net: Model, bits: Bits) -> None:
    """Replace every linear map of every layer. Raises UserError without bitsandbytes."""
    # Tells of a kernel that no hub gave it; torch's own products are taken instead.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"adapter.quantize needs bitsandbytes ({error}); pip install 'ingot[quantized]'",
            status=EXIT_BAD_INPUT,
        ) from error
    for block in net.trunk.blocks:
        names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        for name in names:
            parent, _, own = name.rpartition(".")
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            setattr(block.get_submodule(parent), own, _quantised(bitsandbytes.nn, linear, bits))
    # Where peft looks for which of its layers fit; torch has no place for such a mark.
    net.trunk.blocks.__dict__[f"is_loaded_in_{bits}"] = True


def _quantised(kinds: Any, linear: nn.Linear, bits: Bits) -> nn.Module:
    shape = linear.in_features, linear.out_features, linear.bias is not None
    found: nn.Module
    if bits == "4bit":
        found = kinds.Linear4bit(*shape, quant_type="nf4", compress_statistics=True)
    else:
        found = kinds.Linear8bitLt(*shape, has_fp16_weights=False)
    found.load_state_dict(linear.state_dict())
    found.requires_grad_(requires_grad=False)
    return found.to(linear.weight.device)  # which is when it quantises
