"""`python -m finetune ensemble`: several fine-tuned models as one."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor, nn

from finetune.adapters.attach import attached
from finetune.checkpoint import Purpose, write_model
from finetune.models import Opened, open_model
from finetune.transfer.direct import Scored, directory_of, score, write
from model.heads import Output
from model.hf.shards import staged
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

# How the logits of a task become numbers whose mean makes sense, and back.
_MEANS = {
    "classification": "softmax",
    "token": "softmax",
    "choice": "softmax",
    "span": "softmax_over_tokens",
    "multi_label": "sigmoid",
    "regression": "none",
}
FILE = "ensemble.json"  # in the averaged model's directory: what it was made of


class Ensemble(nn.Module):
    """Models of one task as one, whose logits give the mean of their probabilities."""

    def __init__(self, nets: Sequence[nn.Module], kind: str) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.config = nets[0].config
        self._how = _MEANS[kind]

    def forward(self, *arguments: Tensor, **batch: Tensor) -> Output:
        """Return logits of the shape that each model returns, in fp32."""
        logits = torch.stack([net(*arguments, **batch).logits.float() for net in self.nets])
        mask = batch.get("attention_mask")
        if self._how == "softmax_over_tokens" and mask is not None:  # padding has no probability
            logits = logits.masked_fill(mask[..., None] == 0, -1e9)
        return Output(_mean(logits, self._how))


def _mean(logits: Tensor, how: str) -> Tensor:
    """The mean over the first dimension, of what the logits stand for."""
    if how == "none":
        return logits.mean(0)
    if how == "sigmoid":
        mean = _log_mean(nn.functional.logsigmoid(logits))
        return mean - _log_mean(nn.functional.logsigmoid(-logits))  # logit(p) = ln p − ln(1 − p)
    over = 2 if how == "softmax_over_tokens" else -1  # (models, B, T, 2)
    return _log_mean(logits.log_softmax(over))


def _log_mean(values: Tensor) -> Tensor:
    """ln of the mean of exp(values) over the first dimension."""
    mean: Tensor = values.logsumexp(0) - float(np.log(len(values)))
    return mean


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several models' weights, summed in double precision (Wortsman et al. 2022)."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        for name, first in states[0].items()
    }


def main(arguments: list[str]) -> int:
    """Make one model of several, or score them together; exit status as of every command."""
    options = _parse(arguments)
    output = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already; choose another", status=EXIT_BAD_INPUT)
    directories = [directory_of(path) for path in options.runs]
    members = [open_model(directory) for directory in directories]
    for directory, member in zip(directories[1:], members[1:], strict=True):
        _refuse_others(directories[0], members[0], directory, member, options.probabilities)
    if options.probabilities:
        _together(options, directories, members)
    else:
        _averaged(options, directories, members)
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune ensemble",
        description="Average the weights of several fine-tuned models into OUT, a model directory "
        "like any other; or, with --probabilities, score the mean of their probabilities.",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two models or more")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="average probabilities: models may differ in shape; OUT holds predictions.jsonl and "
        "report.json of --data",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="labelled examples to score on")
    parser.add_argument("--batch-size", type=int, default=32, help="items per forward pass (32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    if len(options.runs) < 2:
        parser.error("RUN: two models or more are needed")
    if options.probabilities and options.data is None:
        parser.error("--probabilities needs --data")
    if options.batch_size < 1:
        parser.error(f"--batch-size: {options.batch_size} is less than 1")
    return options


def _refuse_others(
    path: Path, first: Opened, other_path: Path, other: Opened, probabilities: bool
) -> None:
    """Raise UserError where two models can't be averaged."""
    problem = None
    if other.task.keys.kind != first.task.keys.kind:
        problem = f"is for {other.task.keys.kind}, and {path} for {first.task.keys.kind}"
    elif list(other.labels) != list(first.labels):
        problem = f"has other classes than {path}, or in another order"
    elif _tokenizer(other) != _tokenizer(first):
        problem = f"has another tokenizer than {path}"
    elif probabilities and first.task.keys.kind not in _MEANS:
        problem = (
            f"is for {first.task.keys.kind}, whose probabilities can't be averaged; leave "
            "--probabilities out"
        )
    elif not probabilities and not all(_is_whole(opened) for opened in (first, other)):
        problem = "or the first one is an adapter; merge them first (python -m finetune merge)"
    elif not probabilities and _shape(other) != _shape(first):
        problem = f"has another shape than {path}; --probabilities works for these"
    if problem is not None:
        raise UserError(f"{other_path}: {problem}", status=EXIT_BAD_INPUT)


def _is_whole(opened: Opened) -> bool:
    # The mean of A·B over adapters is not the product of their means.
    return attached(opened.net) is None


def _tokenizer(opened: Opened) -> tuple[bytes, int]:
    tokenizer = opened.tokenizer
    return (tokenizer.directory / "tokenizer.json").read_bytes(), tokenizer.max_length


def _shape(opened: Opened) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in opened.net.state_dict().items()}


def _scores(
    options: argparse.Namespace, directories: Sequence[Path], members: Sequence[Opened]
) -> list[dict[str, Any]]:
    """Every member's own scores."""
    said = []
    for directory, member in zip(directories, members, strict=True):
        found = score(member, options.data, options.device, options.batch_size)
        scores = member.task.scores(found.data, found.outputs, member.labels)
        said.append({"model": str(directory), "scores": scores})
    return said


def _together(
    options: argparse.Namespace, directories: Sequence[Path], members: Sequence[Opened]
) -> None:
    first = members[0]
    own = _scores(options, directories, members)
    net: Any = Ensemble([member.net for member in members], first.task.keys.kind)
    opened = first._replace(net=net)
    found = score(opened, options.data, options.device, options.batch_size)
    write(options.output, found, opened, {**found.report, "members": own})
    _tell(own, found, opened, "mean probabilities")
    print(f"predictions and report in {options.output}")


def _averaged(
    options: argparse.Namespace, directories: Sequence[Path], members: Sequence[Opened]
) -> None:
    first = members[0]
    own = [] if options.data is None else _scores(options, directories, members)
    state = average([{n: t.cpu() for n, t in m.net.state_dict().items()} for m in members])
    content = {"members": [str(directory) for directory in directories], "scores": own}
    try:
        with staged(options.output) as staging:
            purpose = Purpose(first.task, first.labels)
            write_model(first.net, state, staging, first.tokenizer, purpose)
            (staging / FILE).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written: {error.strerror}") from error
    if options.data is not None:
        opened = open_model(options.output)
        found = score(opened, options.data, options.device, options.batch_size)
        _tell(own, found, opened, "mean weights")
    print(f"model in {options.output}")


def _tell(own: Sequence[dict[str, Any]], found: Scored, opened: Opened, name: str) -> None:
    """Print the scores of the members and of all together, a line each."""
    together = opened.task.scores(found.data, found.outputs, opened.labels)
    for line in [*own, {"model": name, "scores": together}]:
        values = "  ".join(f"{key} {value:.4f}" for key, value in line["scores"].items())
        print(f"{values}  {line['model']}")
