"""`python -m model`: look at a model, let it speak, bring it in, take it out, check it."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.hf.convert import Conversion

# torch takes seconds to import, so each command imports what it needs.

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, or 2 for a user's mistake and a directory that is not whole."""
    options = _parser().parse_args(arguments)
    try:
        found: int = options.run(options)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print()  # the prompt of the shell goes on a line of its own
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__.split("`: ")[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_describe(commands.add_parser("describe", help="tensors, parameters, FLOPs and memory"))
    _add_generate(commands.add_parser("generate", help="continue texts"))
    into = commands.add_parser("import", help="a released model to a directory in today's form")
    _add_conversion(into)
    into.add_argument(
        "--from-pickle",
        action="store_true",
        help="read pytorch_model.bin, by torch's restricted reader that builds tensors alone",
    )
    into.set_defaults(run=_import)
    out = commands.add_parser("export", help="a run's model to a directory without training state")
    _add_conversion(out)
    out.set_defaults(run=_export)
    check = commands.add_parser("verify", help="whether a model directory is whole")
    check.add_argument("model", metavar="DIR", help="a model directory, a checkpoint or a run")
    check.set_defaults(run=_verify)
    return parser


def _add_describe(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="DIR|PRESET", help="a model directory, a run or a preset's name")
    add("--head", help="causal_lm, masked_lm, … (default: the directory's or the family's)")
    add("--seq-len", type=int, help="tokens per sequence (default: max_seq_len)")
    add("--batch-size", type=int, default=1, help="sequences per device and step (default: 1)")
    add("--dtype", choices=tuple(_DTYPES), default="bf16", help="of the weights (default: bf16)")
    add("--zero-stage", type=int, choices=range(4), default=1, help="of DeepSpeed (default: 1)")
    add("--gpus", type=int, default=1, help="devices that ZeRO divides among (default: 1)")
    command.set_defaults(run=_describe)


def _add_generate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="DIR", help="a model directory or a run, with a tokenizer.json")
    add("--prompt", action="append", metavar="TEXT", help="the text to continue; repeatable")
    add("--prompts", metavar="FILE", help="a text file with one prompt a line")
    add("--max-new-tokens", type=int, default=64, help="tokens (default: 64)")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends a text; repeatable")
    add("--temperature", type=float, default=0.0, help="0: likeliest token (default: 0)")
    add("--top-k", type=int, help="choose among the k likeliest (default: all)")
    add("--top-p", type=float, help="choose among the likeliest that hold p (default: all)")
    add("--min-p", type=float, help="… that have p times the likeliest's share (default: all)")
    add("--seed", type=int, default=0, help="of the random choices (default: 0)")
    add("--batch-size", type=int, default=16, help="prompts at once (default: 16)")
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="show text as it is made (default: on a terminal)",
    )
    add("--device", help="such as cpu or cuda:0 (default: cuda where there is one)")
    add("--dtype", choices=tuple(_DTYPES), help="of the weights (default: the file's)")
    command.set_defaults(run=_generate)


def _add_conversion(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", metavar="SRC", help="the directory to read; export: a checkpoint or a run too")
    add("destination", metavar="DST", help="the directory to write; it must be new")
    add("--head", help="causal_lm, sequence, … (default: the one that config.json names)")
    add("--dtype", choices=tuple(_DTYPES), help="of the stored tensors (default: as they are)")
    add(
        "--max-shard-size",
        type=_size,
        default=5 * 10**9,
        metavar="SIZE",
        help="of one file, such as 500MB (default: 5GB)",
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if match is None or (size := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size such as 500MB or 5GB")
    return size


def _describe(options: argparse.Namespace) -> int:
    from model.describe import describe
    from model.hf.architecture import TRUNK, stored_head
    from model.hf.config import read_config
    from model.hf.manifest import newest_step
    from model.presets import PRESETS, preset

    for name in ("seq_len", "batch_size", "gpus"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: got {value}, expected 1 or more")
    head = options.head
    if options.model in PRESETS or not Path(options.model).exists():
        config = preset(options.model)
    else:
        directory = newest_step(Path(options.model))
        config = read_config(directory)
        stored = stored_head(directory, config)
        head = head or (None if stored == TRUNK else stored)
    text = describe(
        config,
        head=head,
        seq_len=options.seq_len,
        batch_size=options.batch_size,
        dtype=options.dtype,
        zero_stage=options.zero_stage,
        n_devices=options.gpus,
    )
    print(text)
    return 0


def _import(options: argparse.Namespace) -> int:
    from model.hf.convert import import_model

    done = import_model(
        *(options.source, options.destination),
        **_conversion(options),
        from_pickle=options.from_pickle,
    )
    return _report(done, options)


def _export(options: argparse.Namespace) -> int:
    from model.hf.convert import export_step

    return _report(
        export_step(options.source, options.destination, **_conversion(options)), options
    )


def _conversion(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "head": options.head,
        "dtype": _dtype(options),
        "max_shard_bytes": options.max_shard_size,
    }


def _report(done: "Conversion", options: argparse.Namespace) -> int:
    from model.describe import bytes_text

    print(
        f"{options.destination}: {done.config.family}, {done.head}, {done.tensors} tensors,"
        f" {bytes_text(done.bytes)}, {'with' if done.has_tokenizer else 'no'} tokenizer"
    )
    if done.left_out:
        more = f" (+{len(done.left_out) - 8} more)" if len(done.left_out) > 8 else ""
        print(f"left out, no part of this head: {', '.join(done.left_out[:8])}{more}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from model.hf.manifest import newest_step
    from model.hf.verify import verify

    directory = newest_step(Path(options.model))
    checks = verify(directory)
    problems = [problem for check in checks for problem in check.problems]
    if problems:
        more = f" (+{len(problems) - 8} more)" if len(problems) > 8 else ""
        line = f"error: {directory}: {'; '.join(problems[:8])}{more}"
        print(" ".join(line.split()), file=sys.stderr)
        return 2
    for check in checks:
        print(f"{check.name:<10} {check.found}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from model.generate import stream_texts
    from model.hf.directory import load_pretrained
    from model.hf.manifest import newest_step

    prompts = _prompts(options)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: got {options.batch_size}, expected 1 or more")
    device = _device(options.device)
    directory = newest_step(Path(options.model))
    net: Any = load_pretrained(directory, dtype=_dtype(options))
    tokenizer = _tokenizer(directory)
    net.to(device)
    streams = sys.stdout.isatty() if options.stream is None else options.stream
    for start in range(0, len(prompts), options.batch_size):
        batch = prompts[start : start + options.batch_size]
        pieces = stream_texts(
            *(net, tokenizer, batch, options.max_new_tokens),
            stop=options.stop,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=options.seed,
        )
        titles = [f"=== {start + i + 1} of {len(prompts)} ===\n" for i in range(len(batch))]
        _show(batch, titles if len(prompts) > 1 else [""], pieces, streams=streams)
    return 0


def _show(
    prompts: list[str], titles: list[str], pieces: Iterator[tuple[int, str]], *, streams: bool
) -> None:
    """Print each prompt with its text; the first as it is made where `streams`."""
    starts = [title + prompt for title, prompt in zip(titles, prompts, strict=True)]
    texts = list(starts)
    shown = 0
    for row, piece in pieces:
        texts[row] += piece
        if streams and row == 0:
            print(texts[0][shown:], end="", flush=True)
            shown = len(texts[0])
    print("\n".join([texts[0][shown:], *texts[1:]]), flush=True)


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts: list[str] = list(options.prompt or [])
    if options.prompts is not None:
        try:
            lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts: {options.prompts}: not readable: {error}") from None
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError("--prompt: missing, expected a text to continue, or --prompts FILE")
    return prompts


def _tokenizer(directory: Path) -> Any:
    from tokenizers import Tokenizer

    from model.hf.directory import tokenizer_files

    path = tokenizer_files(directory)[0]
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"{path}: not readable as a tokenizer: {error}") from None


def _dtype(options: argparse.Namespace) -> Any:
    import torch

    return getattr(torch, _DTYPES[options.dtype]) if options.dtype else None


def _device(name: str | None) -> Any:
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()  # meta has no numbers to copy back
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
        raise ValueError(f"--device: got {name!r}: {str(error)[:200]}") from None


def _one_line(error: Exception) -> str:
    from pydantic import ValidationError

    from model.config import error_line

    text = error_line(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
