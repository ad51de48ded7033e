"""Fused operations and the optimizer's step against plain PyTorch, the compiler, Liger and torch's.

Forward, and forward + backward, in turns: median and minimum; a step of the optimizer is one time.
Also the bytes that must be moved ÷ time, as a share of what a large copy reaches: small where
computing takes the time, and above 1 where tensors stay in a cache or are updated in place: what a
copy writes is read first. Memory is the peak above inputs, weights and their gradients, below 0
where these take the inputs' place; on a CPU each way is measured in a process of its own, whose
allocator gives back what is freed. Ways that are not installed, or that an operation lacks, are
left out visibly.

    python benchmarks/kernels.py [--ops linear_cross_entropy] [--peers DIR] [--turns 9]

--peers: a folder with liger-kernel, which is installed there when missing. It needs a GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.operations import OPERATIONS, Case, NotHereError, Operation
from benchmarks.peers.process import install
from runtime import hardware, heap, provenance

RESULTS = Path(__file__).resolve().parent / "results"
FAILS = "fails"
MEMORY, TIME = 0.25, 1.05  # of the plain head: targets of ours on a CPU
LONGEST = 5.0  # seconds of a pass; what takes longer is not measured in turns
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(case: Case, *, backward: bool) -> None:
    """One pass."""
    outputs = case.call()
    if backward and case.leaves:
        for tensor in case.leaves:
            tensor.grad = None
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [tensor for tensor in found if tensor.requires_grad]
        torch.autograd.backward(wanted, case.gradients_of(wanted))


def timed(case: Case, device: torch.device, repeats: int, *, backward: bool) -> float:
    """Seconds of a pass."""
    case.restore()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run(case, backward=backward)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def cases(
    operation: Operation,
    shape: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    skipped: Collection[str],
) -> tuple[dict[str, Case], dict[str, str]]:
    """Every way to compute an operation that works here, warmed up; and why the others do not."""
    found, left_out = {}, dict.fromkeys(skipped, "skipped")
    for way in operation.ways:
        if way in skipped:
            continue
        torch.manual_seed(0)
        try:
            case = operation.case(way, shape, dtype, device)
            run(case, backward=True)
            seconds = timed(case, device, 1, backward=True)
            if seconds > LONGEST:
                left_out[way] = f"takes {seconds:.1f} s, forward and backward"
            else:
                found[way] = case
        except NotHereError as reason:
            left_out[way] = str(reason)
        except Exception as error:  # a compiler's, or what a way cannot do: the others go on
            words = str(error).strip() or type(error).__name__
            left_out[way] = f"{FAILS}: {words.splitlines()[0]}"
    return found, left_out


def times(
    found: dict[str, Case], options: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Median and minimum of turns in which all ways alternate, in milliseconds."""
    # "both" of an operation without a backward pass is all that it does.
    kinds = {way: ("forward", "both") if case.leaves else ("both",) for way, case in found.items()}
    turns: dict[str, dict[str, list[float]]] = {way: {k: [] for k in kinds[way]} for way in found}
    names = list(found)
    for turn in range(options.turns):
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            for kind in kinds[way]:
                seconds = timed(found[way], device, options.repeats, backward=kind == "both")
                turns[way][kind].append(seconds * 1e3)
    return {
        way: {
            **({"forward_ms": statistics.median(spent["forward"])} if "forward" in spent else {}),
            "both_ms": statistics.median(spent["both"]),
            "both_min_ms": min(spent["both"]),
            "turns_ms": spent["both"],
        }
        for way, spent in turns.items()
    }


def peak_mb(case: Case, device: torch.device) -> float:
    """Peak of a pass forward and backward, above inputs, weights and their gradients."""
    run(case, backward=True)
    for tensor in case.leaves:
        tensor.grad = None
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in case.leaves)
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(case, backward=True)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before - gradients) / 1e6
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS, see proc(5)
    run(case, backward=True)
    return (_resident("VmHWM") - before - gradients) / 1e6


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def peak_in_own_process(
    operation: str, way: str, shape: dict[str, int], options: argparse.Namespace
) -> float:
    """The same on a CPU, where freed memory would hide in the process that measures times."""
    # Beyond this size every tensor is mapped by itself, and unmapped when freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    told = json.dumps({"operation": operation, "way": way, "shape": shape})
    words = [sys.executable, str(Path(__file__)), "--peak-of", told, "--device", "cpu"]
    words += ["--dtype", options.dtype, "--threads", str(options.threads)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, that a copy reaches which is larger than any cache."""
    size = 1 << (30 if device.type == "cuda" else 29)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    case = Case(lambda: target.copy_(source), [])
    seconds = min(timed(case, device, 1, backward=False) for _ in range(10))
    return 2 * size / seconds


def measure(options: argparse.Namespace, ceiling: float) -> Iterator[dict[str, Any]]:
    """A row per operation, shape and way. ceiling: of a copy, bytes per second."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    for name in options.ops:
        operation = OPERATIONS[name]
        for shape in operation.shapes(options.size):
            moved = operation.bytes_moved(shape, dtype.itemsize)
            about = {"op": name, "shape": shape, "bytes_moved": moved}
            skipped = [way for way in operation.ways if way in options.skip]
            found, left_out = cases(operation, shape, dtype, device, skipped)
            spent = times(found, options, device) if found else {}
            for way, reason in left_out.items():
                yield {**about, "way": way, "left_out": reason}
            for way, values in spent.items():
                row = {**about, "way": way, **values}
                row["of_copy"] = moved / (values["both_ms"] / 1e3) / ceiling
                if device.type == "cuda":
                    row["peak_mb"] = peak_mb(found[way], device)
                else:
                    row["peak_mb"] = peak_in_own_process(name, way, shape, options)
                yield row


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    size = " ".join(f"{name}={value}" for name, value in row["shape"].items())
    if "left_out" in row:
        return f"| {row['op']} | {size} | {row['way']} | left out: {row['left_out']} |"
    forward = f"{row['forward_ms']:.3f}" if "forward_ms" in row else "–"
    cells = [row["op"], size, row["way"], forward, f"{row['both_ms']:.3f}"]
    cells += [f"{row['both_min_ms']:.3f}", f"{row['peak_mb']:,.1f}"]
    cells += [f"{row['bytes_moved'] / 1e6:,.1f}", f"{100 * row['of_copy']:.0f} %"]
    return "| " + " | ".join(cells) + " |"


def targets(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against the plain head: memory and time, for each shape."""
    found = []
    done = [row for row in table if "both_ms" in row and row["op"] == "linear_cross_entropy"]
    for ours in [row for row in done if row["way"] == "ours"]:
        plain = next((r for r in done if r["shape"] == ours["shape"] and r["way"] == "eager"), None)
        if plain is None:
            continue
        pairs = zip(ours["turns_ms"], plain["turns_ms"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        memory = ours["peak_mb"] / plain["peak_mb"]
        found.append(
            {
                "shape": ours["shape"],
                "memory": memory,
                "time": ratio,
                "met": memory <= MEMORY and ratio <= TIME,
            }
        )
    return found


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory of each way, shape by shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ingot"})
    done = [row for row in table if "both_ms" in row][::-1]
    names = [f"{r['op']} {tuple(r['shape'].values())} {r['way']}" for r in done]
    colors = ["tab:blue" if row["way"].startswith("ours") else "tab:gray" for row in done]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.3 * len(done) + 1.5), sharey=True)
    for axis, key in zip(axes, ("both_ms", "peak_mb"), strict=True):
        axis.barh(names, [row[key] for row in done], color=colors)
        axis.set_title({"both_ms": "forward + backward, ms", "peak_mb": "peak, MB"}[key])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def install_liger(libraries: Path) -> None:
    """Put it there; where that cannot be done, say so, and its ways are left out."""
    try:
        install(libraries, ("liger-kernel",))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"liger-kernel could not be installed in {libraries}: {error}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=lambda text: text.split(","), default=list(OPERATIONS))
    parser.add_argument("--skip", type=lambda text: text.split(","), default=[], metavar="WAYS")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--size", choices=["cpu", "cuda", "dry"], help="default: as the device")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--repeats", type=int, help="passes per turn; 1 on a CPU, 20 on a GPU")
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.size = options.size or options.device
    options.repeats = options.repeats or (20 if options.device == "cuda" else 1)
    return options


def main() -> None:
    """Measure, print, and write."""
    options = arguments()
    if options.peers:
        install_liger(options.peers)
        sys.path.append(str(options.peers))
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    if options.peak_of:
        told = json.loads(options.peak_of)
        torch.manual_seed(0)
        operation = OPERATIONS[told["operation"]]
        case = operation.case(told["way"], told["shape"], DTYPES[options.dtype], device)
        print(peak_mb(case, device))
        return
    if device.type == "cpu":
        heap.keep()  # as every run of ours does
    load = os.getloadavg()[0]
    ceiling = copy_rate(device)
    print(f"a large copy moves {ceiling / 1e9:,.1f} GB/s, read and written\n")
    columns = ["op", "shape", "way", "forward, ms", "+ backward", "min", "peak, MB"]
    columns += ["moved, MB", "of a copy's rate"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"kernels_{options.device}.json"
    table: list[dict[str, Any]] = []
    for row in measure(options, ceiling):
        table.append(row)
        print(line(row), flush=True)
        write(table, options, load, ceiling, path)  # whatever ends the run, what was measured stays
    for target in targets(table):
        met = "met" if target["met"] else "MISSED"
        print(
            f"{met}: {target['shape']}: memory {target['memory']:.3f} (≤ {MEMORY}),"
            f" time {target['time']:.3f} (≤ {TIME}) of the plain head's"
        )
    try:
        plot(table, path.with_suffix(".svg"))
    except ImportError as error:
        print(f"no plot, as {error.name} is not installed")
    if any(is_our_failure(row) for row in table):
        sys.exit("a way of ours fails")


def is_our_failure(row: dict[str, Any]) -> bool:
    """Whether a kernel of ours does not work here, where it should."""
    return row["way"].startswith("ours") and row.get("left_out", "").startswith(FAILS)


def write(
    table: list[dict[str, Any]],
    options: argparse.Namespace,
    load: float,
    ceiling: float,
    path: Path,
) -> None:
    """Write the rows, the targets, and what was measured with."""
    on_gpu = options.device == "cuda"
    settings = {
        **{name: getattr(options, name) for name in ("dtype", "turns", "repeats", "threads")},
        "device": torch.cuda.get_device_name() if on_gpu else hardware.cpu_name(),
        "load": [load, os.getloadavg()[0]],
        "copy_bytes_per_s": ceiling,
        "versions": provenance.versions(),
    }
    content = {"settings": settings, "rows": table, "targets": targets(table)}
    whole = path.with_suffix(".tmp")  # a sweep that ends this process must not lose all rows
    whole.write_text(json.dumps(content, indent=1) + "\n")
    whole.replace(path)


if __name__ == "__main__":
    main()
