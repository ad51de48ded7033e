"""A process that has imported everything once and forks ranks: a run starts in a tenth of a second.

It reads one JSON request a line and answers with one. Nothing here has started a thread, opened
a process group or run a parallel region, so that a fork is as good as a new process.
"""

import gc
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from runtime.errors import EXIT_INTERRUPTED

PRELOADED = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.utils.zero_to_fp32",
    "pretrain.__main__",
    "pretrain.train",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint",
    "transformers",
    "tests.faults.injection",
    "tests.faults.storage_worker",
)


def preload() -> None:
    """Import what ranks import, and do the slow things that every process would do alike."""
    for module in PRELOADED:
        import_module(module)
    import deepspeed

    dict(deepspeed.ops.__compatible_ops__)  # probes compilers: 0.15 s
    from runtime import provenance

    known = provenance.versions()  # asks git; the same for all our children
    provenance.versions = lambda: dict(known)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads after the imports: forks would not be safe"
    gc.collect()
    gc.freeze()


def spawn(request: dict[str, Any], server_ends: list[int]) -> int:
    """Fork a child that runs `module:function`; its exit status is what the function returns."""
    pid = os.fork()
    if pid == 0:
        _run(request, server_ends)
    return pid


def _run(request: dict[str, Any], server_ends: list[int]) -> NoReturn:
    try:
        _become(request, server_ends)
        module, function = request["target"].split(":")
        status = getattr(import_module(module), function)(request["argv"])
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:  # before anything else has taken SIGINT
        status = EXIT_INTERRUPTED
    except BaseException:  # the child must never return into the server's loop
        traceback.print_exc()
        status = 1
    _leave(int(status or 0))


def _become(request: dict[str, Any], server_ends: list[int]) -> None:
    """Take on the session, environment and files of a process of its own."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    for descriptor in server_ends:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    output = os.open(request["output"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.close(nothing)
    os.close(output)
    sys.stdin, sys.stdout, sys.stderr = (
        open(0),  # noqa: SIM115
        open(1, "w", buffering=1),  # noqa: SIM115
        open(2, "w", buffering=1),  # noqa: SIM115
    )
    sys.argv = [request["target"], *request["argv"]]


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until the requests end; children that are left then are killed, by pid."""
    children: set[int] = set()
    ends = [requests.fileno(), replies.fileno()]
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "spawn":
            reply["pid"] = spawn(request, ends)
            children.add(reply["pid"])
        else:  # reap: the test saw it end
            _, code = os.waitpid(request["pid"], 0)
            children.discard(request["pid"])
            reply["status"] = os.waitstatus_to_exitcode(code)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    # What imports print must not end up between the replies.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C is for the tests, which close our input. Blocked, not ignored: a child that is sent
    # one before it has a handler still gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    preload()
    replies.write(b"{}\n")
    replies.flush()
    serve(requests, replies)


if __name__ == "__main__":
    main()
