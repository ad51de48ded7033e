"""PEFT directories: what an adapter changes, and which checkpoint it changes."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune.adapters import names
from finetune.adapters.attach import Attached, attach, attached, import_peft, peft_config
from finetune.adapters.config import Adapter
from model import load_pretrained
from model.config import ModelConfig
from model.heads import Model
from model.hf import CheckpointError, read_config, to_hf_config
from model.hf.directory import tokenizer_files, weight_files
from model.hf.shards import Create, on_disk, write_json, write_safetensors
from runtime.errors import EXIT_BAD_INPUT, UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
OWN = "adapter.json"  # how Ingot opens it: the keys, and the very files of the checkpoint
_TASK_TYPES = {
    **{"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"},
    "causal_lm": "CAUSAL_LM",
}


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no whole model."""
    return (directory / CONFIG).is_file()


def digest_of(base: Path) -> str:
    """Hash a checkpoint's weights and shape. Raises CheckpointError where it has none."""
    digest = hashlib.sha256()
    for path in (base / "config.json", *weight_files(base)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def attach_to(net: Model, keys: Adapter, source: Path) -> str:
    """Put a fresh adapter into a model that was loaded from `source`; says what is trained."""
    base = source.resolve()
    attach(net, keys, base, digest_of(base))
    found = attached(net)
    assert found is not None
    return found.note(net)


# --- writing ---------------------------------------------------------------------------------


def write_adapter(
    net: Model,
    parameters: Mapping[str, Tensor],
    directory: Path,
    tokenizer_directory: Path,
    create: Create = on_disk,
) -> None:
    """Write the adapter of a model as a PEFT directory, its task's head included.

    parameters: whole ones by name; those of the checkpoint may be left out. Raises UserError where
    one of the adapter's is missing or empty, so that no directory is an empty shell.
    """
    adapter = attached(net)
    assert adapter is not None
    places = names.Places(net.config, net.head, adapter.keys)
    tensors: dict[str, Tensor] = {}
    for name in adapter.written:
        tensor = parameters.get(name)
        if tensor is None or not tensor.numel():
            raise UserError(f"{directory}: {name} of the adapter has no values to be saved")
        tensors |= dict(places.place(name).to_file(tensor.detach()))
    if names.is_bias_by_lora(net.config, adapter.keys):
        tensors |= _empty_changes(net, tensors)
    write_safetensors(
        directory / WEIGHTS, {n: t.contiguous() for n, t in tensors.items()}, create=create
    )
    write_json(directory / CONFIG, _peft_content(net, adapter, places), create)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(directory / "config.json", to_hf_config(net.config, net.head, dtype), create)
    own = {
        "adapter": adapter.keys.model_dump(mode="json"),
        "base": str(adapter.base),
        "sha256": adapter.digest,
        "head": net.head,
    }
    write_json(directory / OWN, own, create)
    for path in tokenizer_files(tokenizer_directory):
        shutil.copyfile(path, directory / path.name)


def _peft_content(net: Model, adapter: Attached, places: names.Places) -> dict[str, Any]:
    """The content of adapter_config.json, made by peft itself."""
    keys, shape = adapter.keys, net.config
    peft = import_peft(keys.kind)
    has_head = any(not name.startswith("trunk.") for name in adapter.written)
    values: dict[str, Any] = {
        "base_model_name_or_path": str(adapter.base),
        "task_type": _TASK_TYPES.get(net.head),
        "modules_to_save": places.head_modules() if has_head else None,
        "inference_mode": True,
    }
    if keys.kind in ("prompt", "prefix"):
        is_prefix = keys.kind == "prefix"
        heads = shape.n_kv_heads if is_prefix else shape.n_heads
        values |= {
            "num_virtual_tokens": keys.virtual_tokens,
            "token_dim": heads * shape.head_dim if is_prefix else shape.d_model,
            "num_layers": shape.n_layers,
            "num_attention_heads": heads,
            "num_transformer_submodules": 1,
        }
        kind = peft.PrefixTuningConfig if is_prefix else peft.PromptTuningConfig
        return _plain(kind(**values))
    ours = list(dict.fromkeys(_module_of(n) for n in adapter.written if n.startswith("trunk.")))
    targets = names.target_modules(net, places, ours)
    if keys.kind == "houlsby":  # a method that peft lacks: it refuses the name, as it should
        return {**values, "peft_type": "HOULSBY", "r": keys.rank, "target_modules": targets}
    if names.is_bias_by_lora(shape, keys):
        config = peft.LoraConfig(
            r=1, lora_alpha=1, lora_bias=True, fan_in_fan_out=True, target_modules=targets, **values
        )
        return _plain(config)
    if shape.family == "gpt2":
        values["fan_in_fan_out"] = True
    inputs = [name for name in ours if name.endswith("mlp.down")]
    down = names.target_modules(net, places, inputs) if inputs else []
    if not set(down) <= set(targets):
        down = [name for name in targets if any(name.endswith(end) for end in down)]
    return _plain(peft_config(peft, keys, targets, down, **values))


def _module_of(parameter: str) -> str:
    return ".".join(parameter.split(".")[:5])  # trunk.blocks.N.attention.qkv


def _plain(config: Any) -> dict[str, Any]:
    """Turn peft's config into JSON values."""
    content: dict[str, Any] = config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in content.items()}


def _empty_changes(net: Model, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of changes of rank 1 that are zero, beside their biases."""
    ends = ".lora_B.bias"
    inputs = {"mlp.c_proj": net.config.d_ff}
    found: dict[str, Tensor] = {}
    for name, bias in biases.items():
        if name.endswith(ends):
            module = name.removesuffix(ends)
            width = next((n for end, n in inputs.items() if module.endswith(end)), 0)
            found[f"{module}.lora_A.weight"] = torch.zeros(1, width or net.config.d_model)
            found[f"{module}.lora_B.weight"] = torch.zeros(bias.numel(), 1)
    return found


# --- reading ---------------------------------------------------------------------------------


def open_adapter(directory: Path, head: str, *, quantized: bool = True) -> Model:
    """Open a PEFT directory of ours: the checkpoint that it names, with the adapter in it.

    quantized: False leaves the checkpoint's weights whole, though the adapter was trained on
    quantised ones.

    Raises UserError where the checkpoint is gone or another one, or the directory is not whole.
    """
    keys, base, digest = _read_own(directory)
    if not quantized:
        keys = keys.model_copy(update={"quantize": "none"})
    if not (base / "config.json").is_file():
        raise UserError(
            f"{directory}: is an adapter of {base}, which is not there; put that checkpoint back, "
            f'or write its place as "base" into {OWN}',
            status=EXIT_BAD_INPUT,
        )
    try:
        if digest_of(base) != digest:
            raise UserError(
                f"{directory}: is an adapter of {base}, whose files have changed since; restore "
                "them",
                status=EXIT_BAD_INPUT,
            )
        net = load_pretrained(base, head=head, **_differences(directory, base)).float()
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    attach(net, keys, base, digest)
    _load(net, directory)
    net.newly_initialised = []
    return net.eval()


def _differences(directory: Path, base: Path) -> dict[str, Any]:
    """What the run has set otherwise than the checkpoint: classes, padding, dropout."""
    there, here = read_config(base), read_config(directory)
    changed = {k: getattr(here, k) for k in ModelConfig.model_fields if k != "vocab_multiple"}
    found = {k: value for k, value in changed.items() if value != getattr(there, k)}
    if "num_labels" in found or "id2label" in found:
        found |= {"num_labels": here.num_labels, "id2label": here.id2label}
    return found


def _load(net: Model, directory: Path) -> None:
    path = directory / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
    adapter = attached(net)
    assert adapter is not None
    places = names.Places(net.config, net.head, adapter.keys)
    with torch.no_grad():
        for name in adapter.written:
            parameter = net.get_parameter(name)
            try:
                stored = places.place(name).from_file(tensors)
                parameter.copy_(stored.view_as(parameter))
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"{path}: does not hold the adapter that {OWN} describes: {error}",
                    status=EXIT_BAD_INPUT,
                ) from error


def _read_own(directory: Path) -> tuple[Adapter, Path, str]:
    path = directory / OWN
    try:
        content = orjson.loads(path.read_bytes())
        keys = Adapter.model_validate(content["adapter"])
        return keys, Path(str(content["base"])), str(content["sha256"])
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: is an adapter that Ingot didn't write; merge it into its model with "
            "peft's merge_and_unload, and name that directory",
            status=EXIT_BAD_INPUT,
        ) from error
    except (OSError, ValueError, KeyError, TypeError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
