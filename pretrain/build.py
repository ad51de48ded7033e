"""The model of a run under its engine, as the config asks for both."""

import math

import torch

from model import attention_backends, build, flex, float8
from model.attention_backends import Choice
from model.config import ModelConfig
from model.heads import LanguageModel, Model
from model.hf.state import slots
from model.init import parameter_groups
from model.transformer import Block
from pretrain.config import PretrainConfig
from pretrain.objectives.traits import layout_for
from runtime import dist
from runtime.compilation import Compilation
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import DTYPES, Engine, partitioned_construction
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.optim import build_optimizer
from runtime.run_directory import swap_directory
from runtime.seed import seed_initialisation


def build_engine(
    config: PretrainConfig,
    model_config: ModelConfig,
    head: str,
    ranks: Ranks,
    compilation: Compilation,
    choice: Choice,
) -> Engine:
    """Build a model with new weights under its engine; a checkpoint's are read in slices."""
    sizes = [math.prod(slot.shape) for slot in slots(model_config, head)]
    settings = deepspeed_config(
        config.parallel,
        config.precision,
        micro_batch_size=config.micro_batch_size(ranks.world_size),
        accumulation_steps=config.accumulation_steps(ranks.world_size),
        world_size=ranks.world_size,
        max_grad_norm=config.optim.max_grad_norm,
        device_type=ranks.device.type,
        extra=config.deepspeed.extra,
        largest_parameter=max(sizes),
        parameters=sum(sizes),
        swap_directory=swap_directory(config.parallel, config.run_dir),
    )
    seed_initialisation(config.run.seed)
    with partitioned_construction(settings, ranks):
        net = build(model_config, head=head)
    net.to(ranks.device)
    net.trunk.set_recompute(config.parallel.activation_checkpointing)
    net.set_kernels(config.kernels)
    if config.precision == "fp8":
        _use_float8(net, ranks)
    net.trunk.splits_documents = not compilation.is_on
    compilation.apply(net.trunk.blocks)
    attention_backends.use(choice)
    net.trunk.attends_varlen = choice.backend in ("auto", "flash")
    net.trunk.attends_flex = choice.backend == "flex"
    if isinstance(net, LanguageModel):
        net.label_smoothing, net.z_loss = config.loss.label_smoothing, config.loss.z_loss
        net.compiles_loss = compilation.is_on
    is_muon = config.optim.name == "muon"
    groups = parameter_groups(net, config.optim.weight_decay, muon=is_muon)
    optimizer = build_optimizer(groups, config.optim)
    whole = [Block] if compilation.is_on else []
    return Engine(
        net, optimizer, settings, ranks, gathered_whole=whole, compiles_update=compilation.is_on
    )


def attention_choice(
    config: PretrainConfig, model_config: ModelConfig, device: torch.device
) -> Choice:
    """What computes attention in this run, the same on all ranks, and why. Collective.

    Raises UserError where FlexAttention is asked for and does not work.
    """
    choice = attention_backends.choose(
        config.attention,
        attention_backends.Machine.here(device),
        model_config,
        DTYPES[config.precision],
        packs_documents=layout_for(config).packing != "concat",
        has_prefix=config.objective == "prefix_lm",
    )
    problem = "another rank's card has no use for it"
    if choice.backend == "flex":
        problem = flex.problem(device, model_config, DTYPES[config.precision]) or ""
    told = dist.gather_text(problem)
    if choice.backend != "flex" or not any(told):
        return choice
    problem = next(problem for problem in told if problem)
    if choice.is_asked_for:
        raise UserError(
            f"attention: flex does not work on this machine: {problem}; write auto",
            status=EXIT_BAD_INPUT,
        )
    return attention_backends.without_flex(f"it does not work here: {problem}")


def _use_float8(net: Model, ranks: Ranks) -> None:
    problem = None
    try:
        float8.use_in(net.trunk, emulate=ranks.device.type == "cpu")
    except ImportError as error:
        problem = str(error)
    dist.raise_together(problem, EXIT_BAD_INPUT)


def float8_notes(net: Model, device: torch.device, *, is_compiled: bool) -> list[str]:
    """What a run in FP8 says of itself at its start."""
    notes = [str(float8.maps_of(net.trunk))]
    if device.type == "cpu":
        notes.append(
            "warning: FP8 is emulated on a CPU, rounded to 8 bits and multiplied in fp32: for "
            "tries, and slower than bf16"
        )
    elif not is_compiled:
        notes.append(
            "warning: FP8 is not compiled, so that each rounding to 8 bits reads and writes all "
            "of a tensor, and is as a rule slower than bf16; write compile: true"
        )
    return notes
