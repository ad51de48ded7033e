"""Reading and writing whole Hugging Face model directories."""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import Model, build
from model.hf.architecture import TRUNK
from model.hf.config import (
    CheckpointError,
    is_plain_name,
    read_config,
    read_ends,
    read_json,
    to_generation_config,
    to_hf_config,
)
from model.hf.names import TIED_COPIES, is_constant
from model.hf.shards import (
    INDEX,
    MAX_SHARD_BYTES,
    WEIGHTS,
    WHOLE,
    Create,
    Part,
    on_disk,
    shard_files,
    staged,
    write_json,
    write_shards,
)
from model.hf.state import canonical_names, from_hf_state, has_head, slots, to_hf_state
from model.init import initialise

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "chat_template.jinja",
)
TIED = ("trunk.token_embedding.weight", "output_bias")  # of ours, that files may hold twice
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = {"F64", "F32", "F16", "BF16"}


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a directory, each read when asked for, so that peak memory stays low."""

    def __init__(self, directory: Path, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, list[int]] = {}
        self.file_of: dict[str, str] = {}
        for path in weight_files(directory):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a dict
                header = file.get_slice(name)
                if header.get_dtype() not in _FLOATS and not is_constant(name):
                    raise CheckpointError(
                        f"{path}: {name} has type {header.get_dtype()}, expected one of"
                        f" {', '.join(sorted(_FLOATS))}; use unquantised weights"
                    )
                if name in self._files:
                    raise CheckpointError(f"{path}: {name} is in another file too; keep one")
                self._files[name], self._shapes[name] = file, header.get_shape()
                self.file_of[name] = path.name
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor if self._dtype is None else tensor.to(self._dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def without_data(self) -> dict[str, Tensor]:
        """Return tensors of the same names and shapes that hold nothing."""
        return {n: torch.empty(shape, device="meta") for n, shape in self._shapes.items()}


def weight_files(directory: Path) -> list[Path]:
    """Find the safetensors files of a directory. Raises `CheckpointError` when there are none."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX}: expected a weight_map of tensors to files")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if not is_plain_name(name, ".safetensors"):
                raise CheckpointError(
                    f"{directory / INDEX}: got file name {name[:80]!r},"
                    " expected model-….safetensors"
                )
            if not (directory / name).is_file():
                raise CheckpointError(f"{directory / name}: no such file, but {INDEX} lists it")
        return [directory / name for name in names]
    pickles = sorted(path.name for glob in _PICKLES for path in directory.glob(glob))
    if pickles:
        mend = "save them as safetensors where they were made"
        if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in pickles):
            mend = f"convert them once: python -m model import {directory} NEW_DIR --from-pickle"
        raise CheckpointError(
            f"{directory}: got only pickled weights ({', '.join(pickles[:3])}), which can run code"
            f" when read carelessly; {mend}"
        )
    raise CheckpointError(f"{directory}: no weights; expected {WEIGHTS} or {INDEX}")


class Tensors(Protocol):
    """What `stored_names` reads: `TensorFiles`, or another reader of a directory."""

    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str) -> Tensor: ...
    def without_data(self) -> dict[str, Tensor]:
        """Return tensors of the same names and shapes that hold nothing."""
        ...


def stored_names(files: Tensors, config: ModelConfig, head: str) -> dict[str, str]:
    """Map the names of tensors that their class writes today to those in the files.

    Tensors of other heads, constants and copies of tied matrices are left out. Nothing is read but
    the copies, to compare them. Raises `CheckpointError` when a tensor is missing, extra, wrongly
    shaped, or a copy of a tied one that differs.
    """
    is_bare = head == TRUNK
    head = "sequence" if is_bare else head
    plan = slots(config, head)
    sources = canonical_names(files, config.family, head)
    may_be_tied = {
        *TIED_COPIES[config.family],
        *(name for slot in plan if slot.ours in TIED for name in slot.theirs),
    }
    tied = {name: files[name] for full, name in sources.items() if full in may_be_tied}
    from_hf_state({**files.without_data(), **tied}, config, head, is_new_head_allowed=is_bare)
    wanted = [slot for slot in plan if not (is_bare and slot.ours.startswith("score."))]
    return {name: sources[name] for slot in wanted for name in slot.theirs if name in sources}


def load_pretrained(
    directory: str | Path,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Model:
    """Load a Hugging Face directory into a model on the CPU, in evaluation mode.

    head: None for the language model's own, causal_lm or masked_lm; causal_lm ends its texts as
    generation_config.json says. dtype: of the parameters; None keeps the file's. overrides:
    `ModelConfig` keys that do not change the trunk's tensors, such as num_labels or dropout.
    With a head for a task (sequence, token, span, choice), what the checkpoint lacks of the head,
    or has for another num_labels when that is overridden, is drawn anew and named in
    `net.newly_initialised`. Raises `CheckpointError`, in one line, for anything else that does not
    fit.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory; models are read from local directories only"
        )
    config = read_config(directory, **overrides)
    head = head or config.lm_head
    if head == "causal_lm" and "eos_token_id" not in overrides:
        config = _with_ends(config, read_ends(directory))
    if head not in config.heads:
        raise CheckpointError(
            f"{directory}: head: got {head!r}, expected one of {', '.join(config.heads)}, which"
            f" family={config.family!r} has"
        )
    with torch.device("meta"):
        net = build(config, head)
    files = TensorFiles(directory, dtype)
    is_complete = has_head(files, config, head)
    is_new_head_allowed = not is_complete or "num_labels" in overrides or "id2label" in overrides
    try:
        # Once on empty tensors: a directory that does not fit is refused before gigabytes are read.
        for tensors in (files.without_data(), files):
            state = from_hf_state(tensors, config, head, is_new_head_allowed=is_new_head_allowed)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    net.load_state_dict(state, strict=False, assign=True)
    net.newly_initialised = [name for name in net.state_dict() if name not in state]
    for name in net.newly_initialised:
        _draw_anew(net.get_submodule(name.rpartition(".")[0]), next(iter(state.values())).dtype)
    return net.eval()


def save_pretrained(
    net: Model,
    directory: str | Path,
    dtype: torch.dtype | None = None,
    tokenizer_dir: str | Path | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a Hugging Face directory that transformers opens as it is.

    dtype: of the stored tensors; None keeps the parameters'. tokenizer_dir: its tokenizer is
    copied. state: whole parameters by name, for a net whose own are partitioned.
    A new directory appears whole or not at all; in an existing one files are replaced one by one.
    Raises `CheckpointError` when the model or the tokenizer cannot be written.
    """
    directory = Path(directory)
    state = net.state_dict() if state is None else state
    files = ModelFiles(
        net.config,
        net.head,
        dtype or next(iter(state.values())).dtype,
        tokenizer_dir=tokenizer_dir,
        max_shard_bytes=max_shard_bytes,
    )
    with staged(directory) as staging:
        files.write(staging, state)


class ModelFiles:
    """The files of a Hugging Face directory, which several writers may share among them.

    Raises `CheckpointError` when the tokenizer is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        head: str,
        dtype: torch.dtype,
        *,
        tokenizer_dir: str | Path | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        part: Part = WHOLE,
    ) -> None:
        self._config, self._head, self._dtype = config, head, dtype
        self._max_shard_bytes, self._part = max_shard_bytes, part
        self._copies = [] if tokenizer_dir is None else tokenizer_files(Path(tokenizer_dir))

    def wanted(self) -> set[str]:
        """The parameters that this writer's part is made of: of a small model, all or none."""
        plan = slots(self._config, self._head)
        sizes = {
            name: math.prod(shape) * self._dtype.itemsize
            for slot in plan
            for name, shape in zip(slot.theirs, slot.their_shapes(), strict=True)
        }
        shards = shard_files(sizes, self._max_shard_bytes).values()
        own = {name for i, names in enumerate(shards) if self._part.holds(i) for name in names}
        return {slot.ours for slot in plan if not own.isdisjoint(slot.theirs)}

    def write(self, directory: Path, state: Mapping[str, Tensor], create: Create = on_disk) -> None:
        """Write this writer's part into a directory; the first one also writes what is small.

        state: whole parameters by name; what others write may be left out. Raises `CheckpointError`
        when it is not that of the config.
        """
        if self._part.writers > 1:
            plan = slots(self._config, self._head)
            state = {s.ours: torch.empty(s.shape, device="meta") for s in plan} | dict(state)
        tensors = to_hf_state(state, self._config, self._head)
        limit, part = self._max_shard_bytes, self._part
        write_shards(directory, tensors, self._dtype, limit, part=part, create=create)
        if self._part.writer > 0:
            return
        dtype = str(self._dtype).removeprefix("torch.")
        write_json(directory / "config.json", to_hf_config(self._config, self._head, dtype), create)
        generation = to_generation_config(self._config)
        if generation is not None:
            write_json(directory / "generation_config.json", generation, create)
        for path in self._copies:
            shutil.copyfile(path, directory / path.name)


def _with_ends(config: ModelConfig, ends: tuple[int, ...] | None) -> ModelConfig:
    if ends is None or set(ends) == set(config.eos_token_ids):
        return config
    return config.model_copy(update={"eos_token_id": ends})


def tokenizer_files(directory: Path) -> list[Path]:
    """List a tokenizer's files. Raises `CheckpointError` when tokenizer.json is missing."""
    if not (directory / TOKENIZER_FILES[0]).is_file():
        raise CheckpointError(f"{directory}: no {TOKENIZER_FILES[0]}; expected a tokenizer")
    return [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]


def _draw_anew(module: nn.Module, dtype: torch.dtype) -> None:
    module.to_empty(device="cpu").to(dtype)
    initialise(module)
