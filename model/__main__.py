"""`python -m model`: look at a model and let it speak."""

import argparse
import sys
from pathlib import Path

# torch takes seconds to import, so each command imports what it needs.


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "describe":
            _describe(options)
        else:
            _generate(options)
    except BrokenPipeError:
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model", description="Look at a model and let it speak."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    describe = commands.add_parser("describe", help="tensors, parameters and FLOPs per token")
    describe.add_argument(
        "model", metavar="DIR|PRESET", help="a model directory or a preset's name"
    )
    describe.add_argument(
        "--seq-len", type=int, help="tokens per sequence for the FLOPs (default: max_seq_len)"
    )

    speak = commands.add_parser("generate", help="continue a text")
    speak.add_argument("model", metavar="DIR", help="a model directory with its tokenizer.json")
    speak.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    speak.add_argument("--max-new-tokens", type=int, default=64, help="tokens (default: 64)")
    speak.add_argument(
        "--temperature", type=float, default=0.0, help="0: likeliest token (default: 0)"
    )
    speak.add_argument("--top-k", type=int, help="choose among the k likeliest (default: all)")
    speak.add_argument(
        "--top-p", type=float, help="choose among the likeliest that hold p (default: all)"
    )
    speak.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    speak.add_argument("--device", help="such as cpu or cuda:0 (default: cuda where there is one)")
    speak.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights (default: the file's)"
    )
    return parser


def _describe(options: argparse.Namespace) -> None:
    from model import flops
    from model.hf.config import read_config
    from model.presets import PRESETS, preset

    if options.model in PRESETS or not Path(options.model).exists():
        config = preset(options.model)
    else:
        config = read_config(options.model)
    seq_len = options.seq_len or config.max_seq_len
    if seq_len < 1:
        raise ValueError(f"--seq-len: got {seq_len}, expected 1 or more")
    total = flops.parameters(config)
    print(f"{config.family}, {config.n_layers} layers, {total:,} parameters\n")
    print(f"{'tensor':<24}{'shape':>18}{'copies':>7}{'parameters':>16}{'share':>8}")
    for part in flops.parts(config):
        shape = " × ".join(map(str, part.shape))
        share = 100 * part.parameters / total
        print(f"{part.name:<24}{shape:>18}{part.copies:>7}{part.parameters:>16,}{share:>7.1f}%")
    per_token = flops.flops_per_token(config, seq_len)
    print(f"\nparameters without embeddings: {flops.non_embedding_parameters(config):,}")
    print(f"training FLOPs per token at {seq_len} tokens, attention in full: {per_token.full:.4g}")
    print(
        f"training FLOPs per token at {seq_len} tokens, attention causal:  {per_token.causal:.4g}"
    )


def _generate(options: argparse.Namespace) -> None:
    import torch
    from tokenizers import Tokenizer

    from model.generate import generate
    from model.heads import CausalLM
    from model.hf.directory import load_pretrained, tokenizer_files

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = load_pretrained(options.model, dtype=dtypes.get(options.dtype))
    assert isinstance(net, CausalLM)
    path = tokenizer_files(Path(options.model))[0]
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"{path}: not readable as a tokenizer: {error}") from None
    ids = tokenizer.encode(options.prompt).ids
    if not ids and net.config.bos_token_id is not None:
        ids = [net.config.bos_token_id]
    try:
        net.to(device)
    except RuntimeError as error:
        raise ValueError(f"--device: got {device!r}: {error}") from None
    tokens = generate(
        net,
        torch.tensor([ids], dtype=torch.long, device=device),
        options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    print(tokenizer.decode(tokens[0].tolist()))


def _one_line(error: Exception) -> str:
    from pydantic import ValidationError

    from model.config import error_line

    text = error_line(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
