"""Ten thousand damaged headers and documents for the readers, in a process with little memory.

A child of the fork server: a reader that crashes ends this process alone, and one that believes a
length in a file cannot have the memory for it.
"""

import json
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.manifest import load as load_data_manifest
from model.hf import CheckpointError, read_config
from model.hf.directory import TensorFiles, weight_files
from model.hf.manifest import damages
from runtime.checkpoint import verify
from runtime.checkpoint.reader import TrainingState
from runtime.errors import UserError
from tests.security.hostile import safetensors

ROOM = 256 * 2**20  # bytes that readers of these files of some kilobytes may take
EDGES: list[Any] = [
    *(-1, 0, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1e308, -0.0, True, None),
    *("", "x", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "٣", "é" * 300, "\n", "NaN"),
    *([], {}, [[]], {"": {}}, [0] * 50),
]

Target = Callable[[Path], object]


def vary(value: Any, draw: random.Random) -> Any:
    """The same document with one part replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        chance, copy = draw.random(), dict(value)
        if chance < 0.12:
            del copy[name]
        elif chance < 0.24:
            copy[draw.choice(["", "x", "../x", "__metadata__", name + "|"])] = copy.pop(name)
        else:
            copy[name] = vary(value[name], draw)
        return copy
    if isinstance(value, list) and value and draw.random() < 0.7:
        copy_of = list(value)
        place = draw.randrange(len(value))
        copy_of[place] = vary(value[place], draw)
        return copy_of if draw.random() < 0.8 else copy_of * 3
    return draw.choice(EDGES)


def damage(text: bytes, draw: random.Random) -> bytes:
    """The same bytes with some flipped, cut, doubled or nested."""
    content = bytearray(text)
    chance = draw.random()
    if chance < 0.4:
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif chance < 0.55:
        del content[draw.randrange(len(content)) :]
    elif chance < 0.7:
        place = draw.randrange(len(content))
        content[place:place] = content[place : place + draw.randint(1, 200)]
    elif chance < 0.8:
        place = draw.randrange(len(content))
        depth = draw.choice([10, 1000, 100_000])
        content[place:place] = draw.choice([b"[", b'{"a":', b"[{"]) * depth
    elif chance < 0.9:
        content[:0] = draw.choice([b"\xef\xbb\xbf", b"\0" * 8, b"\x80\x02", b"PK\x03\x04"])
    else:
        content += draw.choice([b"\0", b"}", b"\n{}", bytes(content)])
    return bytes(content)


def document(original: Any, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        for _ in range(draw.randint(1, 3)):
            original = vary(original, draw)
        text = json.dumps(original).encode("utf-8", "surrogatepass")
    else:
        text = json.dumps(original).encode()
    return damage(text, draw) if draw.random() < 0.5 else text


def header(original: Any, data: bytes, draw: random.Random) -> bytes:
    text = document(original, draw)
    length = draw.choice([None, None, None, *(len(text) + n for n in (-1, 1, 8)), 2**62])
    file = safetensors(text, data, length)
    return damage(file, draw) if draw.random() < 0.3 else file


def values_of(files: TensorFiles) -> None:
    for name in files:
        files[name].sum()


def slices_of(state: TrainingState) -> None:
    for key in ("master", "exp_avg", "exp_avg_sq"):
        state.read("trunk.final_norm.weight", key, 0, 16)


def fuzz(
    path: Path, make: Callable[[], bytes], targets: list[Target], count: int
) -> dict[str, int]:
    """How many of the damaged files were refused and taken; any other end is raised."""
    good = path.read_bytes()
    found = {"refused": 0, "taken": 0}
    for _ in range(count):
        content = make()
        path.write_bytes(content)
        for target in targets:
            try:
                problems = target(path)
            except (UserError, CheckpointError) as error:
                found["refused"] += 1
                line = str(error)
                if not line or "\n" in line or len(line) > 2000:
                    raise AssertionError(f"{target}: says {line!r} of {content!r}") from error
            except BaseException:
                print(f"{path.name}: {target} does not take {content[:2000]!r}", flush=True)
                raise
            else:
                found["refused" if problems else "taken"] += 1
    path.write_bytes(good)
    return found


def read_header(path: Path) -> tuple[Any, bytes]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def main(argv: list[str]) -> int:
    """Arguments: a checkpoint, a prepared directory, seed, number of files."""
    checkpoint, prepared, seed, count = Path(argv[0]), Path(argv[1]), int(argv[2]), int(argv[3])
    draw = random.Random(seed)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))

    def headers(name: str, target: Target, share: float) -> None:
        original, data = read_header(checkpoint / name)
        told[name] = fuzz(
            checkpoint / name,
            lambda: header(original, data, draw),
            [target],
            int(share * count),
        )

    def documents(path: Path, targets: list[Target], share: float) -> None:
        original = json.loads(path.read_text())
        told[path.name] = fuzz(path, lambda: document(original, draw), targets, int(share * count))

    told: dict[str, dict[str, int]] = {}
    headers("model.safetensors", lambda _: values_of(TensorFiles(checkpoint, None)), 0.25)
    optimizer = "training/optimizer_00000.safetensors"
    headers(optimizer, lambda _: slices_of(TrainingState(checkpoint)), 0.15)
    manifest: list[Target] = [lambda _: verify(checkpoint), lambda _: damages(checkpoint)]
    documents(checkpoint / "MANIFEST.json", manifest, 0.15)
    documents(
        checkpoint / "training" / "state.json", [lambda _: TrainingState(checkpoint) and 0], 0.15
    )
    documents(checkpoint / "config.json", [lambda _: read_config(checkpoint) and 0], 0.15)
    (checkpoint / "model.safetensors").rename(checkpoint / "weights.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "weights.safetensors"}}))
    documents(index, [lambda _: weight_files(checkpoint) and 0], 0.05)
    documents(prepared / "manifest.json", [lambda _: load_data_manifest(prepared) and 0], 0.10)
    print("\n" + json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
