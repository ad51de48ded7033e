"""Whether a model directory is whole: config, tensors, numbers, tokenizer, manifest."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from model.config import ModelConfig
from model.hf.architecture import stored_head
from model.hf.config import read_config, read_json
from model.hf.directory import TOKENIZER_FILES, TensorFiles, stored_names
from model.hf.errors import CheckpointError
from model.hf.manifest import MANIFEST, damages
from model.hf.shards import INDEX, WEIGHTS

_PIECE = 4 * 2**20  # numbers looked at together


class Check(NamedTuple):
    """One thing that was looked at: what was found, and what is wrong with it."""

    name: str
    found: str
    problems: list[str]


def verify(directory: str | Path) -> list[Check]:
    """Read a whole model directory and say what is wrong with it. Raises nothing for a bad one."""
    directory = Path(directory)
    if not directory.is_dir():
        return [Check("directory", "", ["no such directory"])]
    try:
        config = read_config(directory)
        head = stored_head(directory, config)
    except CheckpointError as error:
        problem = str(error).removeprefix(f"{directory}/")
        return [Check("config", "", [problem]), _manifest(directory)]
    checks = [Check("config", f"{config.family}, {head}, {config.n_layers} layers", [])]
    return [
        *checks,
        *_tensors(directory, config, head),
        _tokenizer(directory, config),
        _manifest(directory),
    ]


def _tensors(directory: Path, config: ModelConfig, head: str) -> Iterator[Check]:
    try:
        files = TensorFiles(directory, None)
        names = stored_names(files, config, head)
    except CheckpointError as error:
        yield Check("tensors", "", [str(error).removeprefix(f"{directory}: ")])
        return
    count = sum(files[name].numel() for name in names.values())
    dtypes = sorted({str(files[n].dtype).removeprefix("torch.") for n in names.values()})
    found = f"{len(names)} of {', '.join(dtypes)}, {count:,} numbers"
    extra = [name for name in files if name not in names.values()]
    if extra:
        found += f"; {len(extra)} of no use here: {', '.join(extra[:3])}"
    yield Check("tensors", found, _index_problems(directory, files))
    bad = {name: n for name in files if (n := _not_finite(files[name]))}
    problems = [f"{name} holds {n} numbers that are not finite" for name, n in bad.items()]
    yield Check("numbers", "all finite", problems)


def _index_problems(directory: Path, files: TensorFiles) -> list[str]:
    if (directory / WEIGHTS).is_file():
        return []
    listed = read_json(directory / INDEX)["weight_map"]
    problems = [f"{INDEX} does not list {name}" for name in files if name not in listed]
    for name, file in listed.items():
        if files.file_of.get(name) != file:
            there = files.file_of.get(name, "no file")
            problems.append(f"{INDEX} says {name} is in {file}, but it is in {there}")
    return problems


def _not_finite(tensor: torch.Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    flat = tensor.reshape(-1)
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.numel(), _PIECE))
    return sum(int((~torch.isfinite(piece)).sum()) for piece in pieces)


def _tokenizer(directory: Path, config: ModelConfig) -> Check:
    size = config.vocab_size
    special: dict[str, list[int | None]] = {
        "bos_token_id": [config.bos_token_id],
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": [config.pad_token_id],
    }
    ids = {key: [i for i in found if i is not None] for key, found in special.items()}
    problems = [
        f"{key}: got {i}, expected less than vocab_size={size}"
        for key, found in ids.items()
        for i in found
        if i >= size
    ]
    path = directory / TOKENIZER_FILES[0]
    if not path.is_file():
        return Check("tokenizer", "none", problems)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises nothing more precise
        return Check("tokenizer", "", [*problems, f"{path.name}: not readable: {error}"])
    highest = max(vocabulary.values(), default=-1)
    if highest >= size:
        problems.append(f"{path.name} has token {highest}, expected less than vocab_size={size}")
    known = set(vocabulary.values())
    problems += [
        f"{key}: got {i}, which {path.name} does not have"
        for key, found in ids.items()
        for i in found
        if i not in known and i < size
    ]
    return Check("tokenizer", f"{len(vocabulary):,} tokens of {size:,}", problems)


def _manifest(directory: Path) -> Check:
    found = "every file as written" if (directory / MANIFEST).is_file() else "none"
    return Check("manifest", found, damages(directory))
