"""`python -m finetune prune`: set the smallest weights of a fine-tuned model to zero."""

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.adapters.attach import attached
from finetune.checkpoint import Purpose, write_model
from finetune.config import model_directory
from finetune.models import open_model
from finetune.use import scoring
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError


def main(arguments: list[str]) -> int:
    """Prune; exit status as of every command."""
    options = _parse(arguments)
    directory = model_directory(options.directory)
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"{options.output}: is a file; choose a folder", status=EXIT_BAD_INPUT)
    if options.output.exists() and any(options.output.iterdir()):
        raise UserError(f"{options.output}: is not empty; choose another", status=EXIT_BAD_INPUT)
    opened = open_model(directory)
    if attached(opened.net) is not None:
        raise UserError(
            f"{directory}: is an adapter, whose model's matrices it does not hold; first make one "
            f"model of both: python -m finetune merge {directory} OUT",
            status=EXIT_BAD_INPUT,
        )
    data = scoring.read_labelled(opened, options.data) if options.data else None
    cpu = torch.device("cpu")
    before = copy.deepcopy(opened.net).eval()
    opened.net.eval()
    zeros = total = 0
    for _, matrix in matrices(opened.net):
        with torch.no_grad():
            mask = kept(matrix, options.sparsity, options.pattern)
            matrix.mul_(mask)
        zeros += int((matrix == 0).sum())
        total += matrix.numel()
    options.output.mkdir(parents=True, exist_ok=True)
    parameters = dict(opened.net.named_parameters())
    purpose = Purpose(opened.task, opened.labels)
    write_model(opened.net, parameters, options.output, opened.tokenizer, purpose)
    whole = sum(p.numel() for p in opened.net.parameters())
    print(
        f"{options.output}: {zeros:,} of {total:,} weights of the blocks are zero "
        f"({zeros / total:.1%}), {zeros / whole:.1%} of all {whole:,}"
    )
    rows: list[tuple[str, float, scoring.Scored | None]] = []
    for name, net in (("before", before), ("after", opened.net)):
        size = sum(float((p != 0).sum()) * p.element_size() for p in net.parameters())
        rows.append((name, size, scoring.score(net, opened, data, cpu) if data else None))
    print(scoring.table(rows, opened.task.metrics[0]))
    print("sizes: of the weights that are not zero; the files are as large as before")
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune prune",
        description="Set the smallest weights of every matrix in the blocks to zero (Han et al. "
        "2015), and write a Hugging Face directory.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("output", type=Path, metavar="OUT", help="directory to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--sparsity", type=_share, metavar="P", help="share of zeros, 0 < P < 1")
    which.add_argument(
        "--pattern", type=_pattern, metavar="N:M", help="N of each M neighbours kept, such as 2:4"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="labelled file: scores too")
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _pattern(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]?):([1-9][0-9]?)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected N:M with N less than M, such as 2:4")
    return int(found[1]), int(found[2])


def matrices(net: Any) -> list[tuple[str, Tensor]]:
    """The weight matrices of the blocks: not embeddings, norms, biases or the head."""
    return [
        (f"{name}.weight", module.weight)
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and getattr(module, "row_splits", None)
    ]


def kept(matrix: Tensor, sparsity: float | None, pattern: tuple[int, int] | None) -> Tensor:
    """A mask of ones where a weight stays, (d_out, d_in).

    sparsity: so large a share of the matrix, the smallest by magnitude, goes. pattern (n, m): of
    each m weights side by side in a row, the n largest stay, as NVIDIA's sparse tensor cores want
    it (Mishra et al. 2021). Raises UserError where m does not divide d_in.
    """
    if pattern is None:
        assert sparsity is not None
        count = round(sparsity * matrix.numel())
        order = matrix.abs().flatten().argsort(stable=True)
        mask = torch.ones(matrix.numel(), dtype=matrix.dtype, device=matrix.device)
        mask[order[:count]] = 0
        return mask.view_as(matrix)
    stay, group = pattern
    if matrix.shape[1] % group:
        raise UserError(
            f"--pattern {stay}:{group}: a matrix has rows of {matrix.shape[1]}, which is no "
            f"multiple of {group}",
            status=EXIT_BAD_INPUT,
        )
    parts = matrix.abs().view(-1, group)
    mask = torch.zeros_like(parts)
    mask.scatter_(1, parts.sort(dim=1, descending=True, stable=True).indices[:, :stay], 1)
    return mask.view_as(matrix)
