"""`python -m finetune export`: a fine-tuned model as ONNX, compared with torch before it counts."""

import argparse
import contextlib
import importlib.util
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import model_directory
from finetune.models import TASK_FILE, Opened, open_model
from finetune.use import scoring
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

MODEL, INT8 = "model.onnx", "model_int8.onnx"
_HEADS = ("sequence", "token", "span")
_TOLERANCE = 1e-4  # of logits in fp32
_KEPT = ("config.json", TASK_FILE, "tokenizer.json", "tokenizer_config.json")
_INPUTS = ("input_ids", "attention_mask")


def main(arguments: list[str]) -> int:
    """Export; exit status as of every command."""
    options = _parse(arguments)
    onnx = _libraries()
    opened = open_model(model_directory(options.directory), quantized=False)
    if opened.task.head not in _HEADS:
        raise UserError(
            f"{options.directory}: task {opened.task.kind} has no ONNX form here; its model "
            "directory is what vLLM and transformers serve",
            status=EXIT_BAD_INPUT,
        )
    if opened.task.head == "span" or opened.task.keys.pair_key is not None:
        _refuse_segments(opened, options.directory)
    data = scoring.read_labelled(opened, options.data) if options.data else None
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / MODEL
    _export(opened, path)
    difference = _largest_difference(opened, OnnxModel(path))
    if not difference <= _TOLERANCE:
        path.unlink()
        raise UserError(
            f"{path}: its logits differ from torch's by {difference:.1e}, more than "
            f"{_TOLERANCE:.0e}; it was not kept"
        )
    for name in _KEPT:
        if (opened.tokenizer.directory / name).is_file():
            shutil.copy(opened.tokenizer.directory / name, options.output / name)
    print(f"{path}: logits within {difference:.1e} of torch's")
    files = [MODEL]
    if options.int8:
        _quantise(onnx, path, options.output / INT8)
        files.append(INT8)
    cpu = torch.device("cpu")
    size = sum(p.numel() * p.element_size() for p in opened.net.parameters())
    rows: list[tuple[str, float, scoring.Scored | None]] = [
        ("torch", size, scoring.score(opened.net, opened, data, cpu) if data else None)
    ]
    for name in files:
        file = options.output / name
        net = OnnxModel(file)
        scored = scoring.score(net, opened, data, cpu) if data else None
        rows.append((name, file.stat().st_size, scored))
    print(scoring.table(rows, opened.task.metrics[0]))
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune export",
        description="Write a fine-tuned model as ONNX, with its tokenizer, after comparing its "
        "logits with torch's.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("output", type=Path, metavar="OUT", help="directory to write")
    parser.add_argument("--int8", action="store_true", help="also with weights of 8 bits")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled file: compare scores and time too"
    )
    return parser.parse_args(arguments)


def _refuse_segments(opened: Opened, directory: Path) -> None:
    """The file takes token ids and their mask: a model told the second text by its segments."""
    if opened.net.config.type_vocab_size > 1:
        raise UserError(
            f"{directory}: a {opened.net.config.family} model tells two texts apart by "
            "token_type_ids, which the exported file would not take; export one without segments",
            status=EXIT_BAD_INPUT,
        )


def _libraries() -> ModuleType:
    # torch's exporter needs onnx and onnxscript, and says so late.
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"export needs the package {name}; pip install 'ingot[export]'",
                status=EXIT_BAD_INPUT,
            )
    import onnxruntime.quantization

    found: ModuleType = onnxruntime.quantization
    return found


class _Logits(nn.Module):
    """The model as a function from tensors to one tensor."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.net(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _export(opened: Opened, path: Path) -> None:
    net = opened.net.eval().float()
    net.trunk.unpads = False  # the number of its tokens would become a constant
    ids = torch.ones((2, 8), dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=net.config.max_seq_len)
    axes = {0: batch, 1: length}
    with _quiet():
        program = torch.onnx.export(
            _Logits(net),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            dynamic_shapes=(axes, axes),
            input_names=list(_INPUTS),
            output_names=["logits"],
        )
        assert program is not None
        temporary = path.with_name(f".{path.name}.tmp")
        program.save(str(temporary))
    temporary.replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress, which tells a user nothing that could be mended."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


class OnnxModel:
    """An ONNX file that is called as a model is."""

    training = False

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        """Compute `logits` from the tensors that the file takes."""
        taken = {name: inputs[name].cpu().numpy() for name in self._names}
        (logits,) = self._session.run(None, taken)
        return SimpleNamespace(logits=torch.from_numpy(np.ascontiguousarray(logits)))


def _largest_difference(opened: Opened, exported: OnnxModel) -> float:
    """Over batches of several shapes, padded rows among them."""
    net, draw = opened.net, torch.Generator().manual_seed(0)
    longest = min(net.config.max_seq_len, opened.tokenizer.max_length)
    worst = 0.0
    for rows, length in ((1, 2), (1, longest), (3, max(2, longest // 2)), (8, min(longest, 17))):
        ids = torch.randint(0, net.config.vocab_size, (rows, length), generator=draw)
        pad = opened.tokenizer.pad_id
        ids[ids == pad] = (pad + 1) % net.config.vocab_size
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, max(1, length - row) :] = 0
        ids[mask == 0] = pad
        with torch.inference_mode():
            expected = net(input_ids=ids, attention_mask=mask).logits
        got = exported(input_ids=ids, attention_mask=mask).logits
        real = mask.bool() if expected.dim() == 3 else torch.ones(rows, dtype=torch.bool)
        worst = max(worst, float((expected - got)[real].abs().max()))
    return worst


def _quantise(quantization: ModuleType, path: Path, output: Path) -> None:
    with _quiet():
        quantization.quantize_dynamic(
            str(path), str(output), weight_type=quantization.QuantType.QInt8, per_channel=True
        )
