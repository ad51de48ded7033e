"""Ways of keeping a run's state, behind one face, so that the same faults can befall all of them.

Each is used as its documentation shows. Every number of the state is the step, so that after a
load it is plain what it holds. Ranks of these are started by `benchmarks/faults.py`.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as to_safetensors

from runtime import dist, sections
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.saver import Saver
from runtime.dist import Ranks
from runtime.run_directory import newest_checkpoint
from runtime.zero_layout import MASTER, Slice
from tests.faults import injection

WIDTH = 512  # of the toy network's one matrix; 1 MB of weights, 3 MB with its optimizer's state
KEPT = 2


class Peer(ABC):
    """A rank's state, and one way to keep it."""

    def __init__(self, root: Path, ranks: Ranks) -> None:
        self.root, self.ranks = root, ranks
        self.tensors = [torch.zeros(WIDTH * WIDTH) for _ in range(3)]

    def fill(self, step: int) -> None:
        """Make every number of the state the step."""
        for tensor in self.tensors:
            tensor.fill_(step)

    def content(self) -> list[float]:
        """The different numbers that the state holds."""
        return sorted({value for t in self.tensors for value in t.unique().tolist()})

    @abstractmethod
    def save(self, step: int) -> int | None:
        """Save. Collective; returns a step that counts as saved when it returns."""

    @abstractmethod
    def load(self) -> int | None:
        """Load what was saved last. Collective; the step, None where there is nothing."""

    def keep_last(self, pattern: str) -> None:
        """Delete all but the newest directories."""
        if self.ranks.is_main:
            for path in sorted(self.root.glob(pattern))[:-KEPT]:
                shutil.rmtree(path)


class TorchInPlace(Peer):
    """torch.save over the last file, as nanoGPT and many loops do."""

    def save(self, step: int) -> int | None:
        torch.save({"step": step, "state": self.tensors}, self._path)
        torch_dist.barrier()
        return step

    def load(self) -> int | None:
        if not self._path.exists():
            return None
        found = torch.load(self._path)
        self.tensors = found["state"]
        return int(found["step"])

    @property
    def _path(self) -> Path:
        return self.root / f"rank{self.ranks.rank}.pt"


class TorchTagged(Peer):
    """torch.save into a directory per step; `latest` names it after all ranks have written."""

    def save(self, step: int) -> int | None:
        path = self.root / f"step_{step:08d}"
        path.mkdir(exist_ok=True)
        torch.save({"step": step, "state": self.tensors}, path / f"rank{self.ranks.rank}.pt")
        torch_dist.barrier()
        if self.ranks.is_main:
            (self.root / "latest").write_text(path.name)
        self.keep_last("step_*")
        torch_dist.barrier()
        return step

    def load(self) -> int | None:
        if not (self.root / "latest").exists():
            return None
        path = self.root / (self.root / "latest").read_text()
        found = torch.load(path / f"rank{self.ranks.rank}.pt")
        self.tensors = found["state"]
        return int(found["step"])


class DcpInPlace(Peer):
    """torch.distributed.checkpoint over the last one."""

    def save(self, step: int) -> int | None:
        dcp.save(self._state(step), checkpoint_id=self._path(step))
        return step

    def load(self) -> int | None:
        path = self._newest()
        if path is None:
            return None
        state = self._state(0)
        dcp.load(state, checkpoint_id=path)
        return int(state[f"step{self.ranks.rank}"])

    def _path(self, step: int) -> Path:
        return self.root / "checkpoint"

    def _newest(self) -> Path | None:
        found = sorted(path.parent for path in self.root.glob("*/.metadata"))
        return found[-1] if found else None

    def _state(self, step: int) -> dict[str, torch.Tensor]:
        rank = self.ranks.rank
        state = {f"tensor{i}_{rank}": t for i, t in enumerate(self.tensors)}
        return {**state, f"step{rank}": torch.tensor(step)}


class DcpDirectories(DcpInPlace):
    """torch.distributed.checkpoint into a directory per step; the newest with metadata is read."""

    def save(self, step: int) -> int | None:
        super().save(step)
        self.keep_last("step_*")
        torch_dist.barrier()
        return step

    def _path(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"


class DeepSpeed(Peer):
    """save_checkpoint and load_checkpoint of an engine under ZeRO-1."""

    def __init__(self, root: Path, ranks: Ranks) -> None:
        super().__init__(root, ranks)
        from runtime.engine import _import_deepspeed  # quiet, and without a C++ compiler

        net = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self._engine, self._optimizer, *_ = _import_deepspeed(ranks).initialize(
            model=net,
            optimizer=torch.optim.AdamW(net.parameters(), lr=1e-3),
            config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}},
        )
        self._engine.backward(self._engine(torch.ones(1, WIDTH)).sum())
        self._engine.step()  # makes the optimizer's state
        self.tensors = list(self._tensors())

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield self._engine.module.weight.data
        for flat in self._optimizer.single_partition_of_fp32_groups:
            yield flat.data
            state = self._optimizer.optimizer.state[flat]
            yield from (state["exp_avg"], state["exp_avg_sq"])

    def save(self, step: int) -> int | None:
        self._engine.save_checkpoint(self.root, tag=f"step_{step:08d}", client_state={"step": step})
        self.keep_last("step_*")
        torch_dist.barrier()
        return step

    def load(self) -> int | None:
        path, state = self._engine.load_checkpoint(self.root)
        self.tensors = list(self._tensors())
        return None if path is None else int(state["step"])


class Ingot(Peer):
    """Our store, as a run uses it: in the background, and verified when it is read."""

    def __init__(self, root: Path, ranks: Ranks) -> None:
        super().__init__(root, ranks)
        settings = sections.Checkpoint(keep_last=KEPT)
        self._saver = Saver(root, ranks, settings, say=_nothing, beat=_nothing)
        self._steps = 0

    def save(self, step: int) -> int | None:
        self._steps = step
        self._saver.save(step, self, self, {"step": step})
        return self._saver.committed

    def finish(self) -> int | None:
        """Wait for the save in flight."""
        self._saver.wait()
        return self._saver.committed

    def load(self) -> int | None:
        found = newest_checkpoint(self.root, self.ranks)
        if found is None:
            return None
        state = TrainingState(found.path)
        self.tensors = [
            state.read(f"weight{self.ranks.rank}", key, 0, WIDTH * WIDTH)
            for key in (MASTER, "exp_avg", "exp_avg_sq")
        ]
        return int(state.values["step"])

    # What the store asks of an engine, and of an export.

    def optimizer_slices(self) -> Iterator[Slice]:
        """This rank's tensors."""
        for key, tensor in zip((MASTER, "exp_avg", "exp_avg_sq"), self.tensors, strict=True):
            yield Slice(f"weight{self.ranks.rank}", key, 0, tensor)

    def optimizer_steps(self) -> int:
        """As many as were saved."""
        return self._steps

    def parameter_shapes(self) -> dict[str, list[int]]:
        """Of all ranks."""
        return {f"weight{r}": [WIDTH * WIDTH] for r in range(self.ranks.world_size)}

    def full_parameters(self, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's weights."""
        yield from ((name, self.tensors[0]) for name in wanted)

    def wanted(self) -> list[str]:
        """What this rank's file of weights holds."""
        return [f"weight{self.ranks.rank}"]

    def write(self, directory: Path, parameters: dict[str, torch.Tensor], create: Any) -> None:
        """Write it."""
        with create(directory / f"model-{self.ranks.rank}.safetensors") as file:
            file.write(to_safetensors(parameters))


PEERS: dict[str, type[Peer]] = {
    "ingot": Ingot,
    "deepspeed": DeepSpeed,
    "torch_in_place": TorchInPlace,
    "torch_tagged": TorchTagged,
    "dcp_in_place": DcpInPlace,
    "dcp_directories": DcpDirectories,
}


def _nothing(*_: object) -> None:
    """Say nothing."""


def _tell(**values: Any) -> None:
    """One line of JSON for whoever started us."""
    print("\n@" + json.dumps(values), flush=True)


def _loaded(peer: Peer) -> dict[str, Any]:
    """Load, and say what came of it on this rank."""
    peer.fill(-1)
    try:
        step = peer.load()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    return {"step": step, "content": peer.content() if step is not None else []}


def load(argv: list[str]) -> int:
    """usage: PEER ROOT: say what a start would find."""
    ranks = dist.init("cpu", 20)
    _tell(**_loaded(PEERS[argv[0]](Path(argv[1]), ranks)))
    os._exit(0)  # ranks that failed to load do not wait for one another


def save(argv: list[str]) -> int:
    """usage: PEER ROOT FIRST LAST ACKNOWLEDGED: save steps until killed, or the last."""
    injection.arm()
    name, root, first, last = argv[0], Path(argv[1]), int(argv[2]), int(argv[3])
    ranks = dist.init("cpu", 20)
    peer = PEERS[name](root, ranks)
    if ranks.is_main:
        file = os.open(argv[4], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    _tell(begins=first)

    def acknowledge(step: int | None) -> None:
        if ranks.is_main and step is not None:
            os.write(file, f"{step}\n".encode())

    try:
        for step in range(first, last):
            peer.fill(step)
            acknowledge(peer.save(step))
        if isinstance(peer, Ingot):
            acknowledge(peer.finish())
    except BaseException as error:
        traceback.print_exc()
        _tell(error=f"{type(error).__name__}: {error}"[:200])
        os._exit(1)
    os._exit(0)


def damage(argv: list[str]) -> int:
    """usage: PEER ROOT TRIALS.json: load once after each damage, one rank, and put it back."""
    ranks = dist.init("cpu", 20)
    peer = PEERS[argv[0]](Path(argv[1]), ranks)
    for trial in json.loads(Path(argv[2]).read_text()):
        path = Path(trial["path"])
        whole = path.read_bytes()
        data = bytearray(whole)
        if "bit" in trial:
            data[trial["byte"]] ^= 1 << trial["bit"]
        else:
            del data[trial["byte"] :]
        path.write_bytes(data)
        sys.stdout.flush()
        _tell(**trial, **_loaded(peer))
        path.write_bytes(whole)
    os._exit(0)


def wait_for_peer(argv: list[str]) -> int:
    """usage: TIMEOUT_S: all-reduce with a peer that stops, and say how long it took to notice."""
    injection.arm()
    dist.init("cpu", int(argv[0]))
    for _ in range(10):
        torch_dist.all_reduce(torch.zeros(1))
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    start = time.monotonic()
    try:
        torch_dist.all_reduce(torch.zeros(1))
    except Exception as error:
        _tell(seconds=time.monotonic() - start, error=str(error)[:300])
    os._exit(1)
