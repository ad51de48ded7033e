"""`python -m launch plan MODEL`: the best layout for a run, and how far it scales; needs no GPU."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.estimate.devices import Device, find
from launch.estimate.network import GB, HOST_MEMORY, Network, default_network
from launch.plan import compare, ramp, scaling
from launch.plan.batch import advised_sequences
from launch.plan.nothing import nothing_fits
from launch.plan.quantities import count_text, parse_count
from launch.plan.search import Ask, Candidate, best_of, flops, search
from launch.plan.subject import Subject, find_subject
from launch.plan.text import plan_record, plan_text
from launch.plan.write import as_yaml, comment_for, planned
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_MOST_GPUS, _MOST_SEQUENCES = 1_000_000, 10_000_000
_NETWORK = {  # option → field of Network, unit and its size
    "link": ("link", "GB/s", GB, "of a GPU inside a node"),
    "wire": ("wire", "GB/s", GB, "of a GPU between nodes"),
    "latency": ("latency_s", "µs", 1e-6, "of a hop between nodes"),
    "link-latency": ("link_latency_s", "µs", 1e-6, "of a hop inside a node"),
    "overlap": ("overlap", "", 1.0, "share of communication that computing hides"),
    "host-link": ("host_link", "GB/s", GB, "of a GPU to the host's memory"),
    "host-bandwidth": ("host_bandwidth", "GB/s", GB, "of the host's memory, per GPU"),
    "nvme": ("nvme", "GB/s", GB, "of NVMe, per GPU"),
}


def main(argv: Sequence[str]) -> int:
    """Plan. Raises UserError (status 2) for what cannot be read or does not fit."""
    options = _parser().parse_args(argv)
    if options.published:
        return _published(options)
    if options.model is None:
        raise UserError(
            "MODEL is missing: a preset, a pretraining config or a model directory",
            status=EXIT_BAD_INPUT,
        )
    ask, tokens = _ask(options)
    found = search(ask)
    if not found.fitting:
        raise UserError(nothing_fits(ask, found), status=EXIT_BAD_INPUT)
    best = best_of(found)
    points = scaling.simulate(ask, options.threshold, tokens)
    command = shlex.join(["python", "-m", "launch", "plan", *argv])
    _write(options, ask, best[0], tokens, command)
    if options.plot:
        _save(options.plot, _picture(ask, points, options.threshold))
    if options.json:
        record = plan_record(ask, found, best, tokens)
        print(json.dumps({**record, "scaling": scaling.as_records(points)}, indent=2))
        return EXIT_OK
    print("\n".join(plan_text(ask, found, best, tokens)))
    print("\n".join(["", "scaling", *scaling.table(points, ask.seq_len, tokens)]))
    print(scaling.first_break(points))
    _tell_files(options, ask)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch plan", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a preset, a pretraining config, a model directory",
    )
    add("--gpus", type=int, default=8, help="ranks, default 8")
    add("--gpu", default="h100", help="h100, a100-80gb, cpu, …; default h100")
    add("--gpus-per-node", type=int, help="default 8, or all GPUs if fewer")
    add("--tokens", help="length of the run, such as 300B (default: the config's)")
    add("--seq-len", help="tokens of a sequence (default: the config's, or up to 8,192)")
    add("--global-batch-size", help="sequences a step (default: the config's, or as advised)")
    add("--precision", choices=("bf16", "fp16", "fp32"), help="default bf16 where there is bf16")
    add("--compile", action="store_true", help="with torch.compile")
    add("--data", metavar="DIR", help="prepared data; its tokenizer decides the vocabulary")
    add(
        "--host-memory",
        type=float,
        default=HOST_MEMORY / GB,
        metavar="GB",
        help=f"of a node; default {HOST_MEMORY / GB:g}",
    )
    add("--nvme-path", metavar="DIR", help="a local disk of every node that may be offloaded to")
    add("--threshold", type=float, default=0.8, help="efficiency that scaling breaks at; 0.8")
    add("--output", type=Path, metavar="FILE.yaml", help="write the best as a pretraining config")
    add("--plot", type=Path, metavar="FILE.svg", help="write the scaling as a picture")
    add("--json", action="store_true", help="print everything as JSON")
    add("--published", action="store_true", help="compare the model with published runs instead")
    for option, (_, unit, _, meaning) in _NETWORK.items():
        add(f"--{option}", type=float, metavar=unit or "SHARE", help=f"{meaning}, one direction")
    return parser


def _published(options: argparse.Namespace) -> int:
    found = compare.compare_all()
    if options.json:
        rows, summary = compare.as_records(found), compare.groups(found)
        groups = [group._asdict() for group in summary]
        print(json.dumps({"runs": rows, "groups": groups}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(compare.tables(found)))
    return EXIT_OK


def _ask(options: argparse.Namespace) -> tuple[Ask, int]:
    """Everything to plan for, checked, and the tokens of the run."""
    _in_range("--gpus", options.gpus, _MOST_GPUS)
    per_node = options.gpus_per_node or min(8, options.gpus)
    if options.gpus_per_node is not None:
        _in_range("--gpus-per-node", options.gpus_per_node, 1024)
    for name, value, most in (
        ("--threshold", options.threshold, 1.0),
        ("--host-memory", options.host_memory, 1e6),
    ):
        if not 0 < value <= most:
            raise UserError(
                f"{name}: got {value:g}, expected more than 0 and at most {most:g}",
                status=EXIT_BAD_INPUT,
            )
    device = find(options.gpu)
    subject = find_subject(options.model, options.data)
    tokens = parse_count(options.tokens, "--tokens") if options.tokens else subject.tokens
    if not tokens:
        raise UserError(
            "--tokens is missing: how long the run is, such as 300B", status=EXIT_BAD_INPUT
        )
    ask = Ask(
        subject,
        device,
        _network(options, device),
        options.gpus,
        per_node,
        _seq_len(options, subject),
        1,
        _precision(options, subject, device),
        options.compile or bool(subject.settings.get("compile")),
        options.host_memory * GB,
        options.nvme_path,
    )
    ask = ask._replace(global_batch_size=_batch(options, ask, tokens))
    ramp.refuse_unshared(ask)
    return ask, tokens


def _in_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UserError(f"{name}: got {value}, expected 1 to {most:,}", status=EXIT_BAD_INPUT)


def _seq_len(options: argparse.Namespace, subject: Subject) -> int:
    if not options.seq_len:
        return subject.seq_len
    seq_len, most = parse_count(options.seq_len, "--seq-len"), subject.model.max_seq_len
    if not 2 <= seq_len <= most:
        raise UserError(
            f"--seq-len: got {seq_len}, expected 2 to {most}, the model's max_seq_len",
            status=EXIT_BAD_INPUT,
        )
    return seq_len


def _precision(options: argparse.Namespace, subject: Subject, device: Device) -> str:
    """As asked, as written, or the best that the device has."""
    written = subject.settings.get("precision")
    precision = str(options.precision or written or ("bf16" if "bf16" in device.peak else "fp16"))
    if precision == "fp8":
        raise UserError(
            "precision: fp8 is not planned, because its speed is not known here; give --precision "
            "bf16, whose memory and batch serve fp8 too, and write fp8 into the config it makes",
            status=EXIT_BAD_INPUT,
        )
    if precision not in device.peak:
        raise UserError(
            f"--precision: {device.name} has no {precision}; write "
            f"{' or '.join(sorted(device.peak))}",
            status=EXIT_BAD_INPUT,
        )
    return precision


def _network(options: argparse.Namespace, device: Device) -> Network:
    network = default_network(device)
    for option, (field, unit, size, _) in _NETWORK.items():
        value = getattr(options, option.replace("-", "_"))
        if value is None:
            continue
        least_is_zero = option in ("latency", "link-latency", "overlap")
        if not 0 <= value < 1e6 or (value == 0 and not least_is_zero):
            what = f"a number of {unit}" if unit else "0 to 1"
            raise UserError(f"--{option}: got {value}, expected {what}", status=EXIT_BAD_INPUT)
        if option == "overlap" and value > 1:
            raise UserError(f"--overlap: got {value}, expected 0 to 1", status=EXIT_BAD_INPUT)
        network = network._replace(**{field: value * size})
    return network


def _batch(options: argparse.Namespace, ask: Ask, tokens: int) -> int:
    """Sequences of a step: as asked or written, or as scaling laws advise."""
    if options.global_batch_size:
        batch = parse_count(options.global_batch_size, "--global-batch-size")
        _in_range("--global-batch-size", batch, _MOST_SEQUENCES)
    elif ask.subject.global_batch_size:
        batch = ask.subject.global_batch_size
    else:
        batch = advised_sequences(flops(ask).causal * tokens, ask.seq_len, ask.gpus)
    if batch % ask.gpus:
        near = [n for n in (batch // ask.gpus * ask.gpus, scaling.batch_for(batch, ask.gpus)) if n]
        raise UserError(
            f"--global-batch-size: {batch:,} sequences cannot be shared out evenly among "
            f"{ask.gpus:,} GPUs; write {' or '.join(map(str, near))}, or another --gpus",
            status=EXIT_BAD_INPUT,
        )
    if batch * ask.seq_len > tokens:
        raise UserError(
            f"--tokens: {count_text(tokens)} is less than one step of {batch:,} × {ask.seq_len:,} "
            "tokens; raise it, or lower --global-batch-size",
            status=EXIT_BAD_INPUT,
        )
    return batch


def _write(
    options: argparse.Namespace, ask: Ask, best: Candidate, tokens: int, command: str
) -> None:
    if options.output:
        config = planned(ask, best, tokens)
        _save(options.output, as_yaml(config, comment_for(ask, best, tokens, command)))


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}", status=EXIT_BAD_INPUT
        ) from None


def _picture(ask: Ask, points: list[scaling.Point], threshold: float) -> str:
    from launch.report.scaling_chart import scaling_chart  # matplotlib takes a second

    shown = [point for point in points if point.best is not None]
    if not shown:
        raise UserError("--plot: the run fits on no number of GPUs", status=EXIT_BAD_INPUT)
    return scaling_chart(
        f"{ask.subject.name} on {ask.device.name}",
        [point.gpus for point in shown],
        [point.best.tokens_per_second if point.best else 0.0 for point in shown],
        [point.efficiency or 0.0 for point in shown],
        broken=[bool(point.breaks) for point in shown],
        threshold=threshold,
    )


def _tell_files(options: argparse.Namespace, ask: Ask) -> None:
    if options.plot:
        print(f"\nwrote {options.plot}")
    if not options.output:
        return
    print(f"\nwrote {options.output}; check it with")
    target = f"--ranks {ask.gpus} --gpus-per-node {ask.gpus_per_node} --gpu {ask.device.name}"
    print(f"  python -m launch check {shlex.quote(str(options.output))} {target}")
    data = ask.subject.settings.get("data", {}).get("train")
    if isinstance(data, str) and not Path(data).is_dir():
        print(f"  once {data} is prepared (python -m data_prep run …), or name yours with --data")
