"""Errors that a person can cause, and how every command reports them."""

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from runtime import outcome

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_IO = 74  # sysexits' EX_IOERR: what had to be saved could not be
EXIT_INTERRUPTED = 130  # the shell's number for SIGINT
EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: saved, run the same command again to go on


class UserError(Exception):
    """A mistake of the person or of the input: one line that names what, where and the mend.

    `status` is the exit status: 2 where the run never started, 1 where it failed on the way.
    """

    def __init__(self, message: str, *, status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.status = status


class Stopped(BaseException):
    """Somebody asked this process to stop while it had nothing to save yet.

    Not an Exception: a library that tries whether another one can be imported must not swallow it.
    """


def leave(status: int) -> NoReturn:
    """End a training process at once, with what it printed but without C++ destructors.

    After a clean shutdown gloo's threads have aborted a process there (seen once among some dozens
    of exits), which a launcher takes for a failed run.
    """
    outcome.tell(status=status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Make a command's `main` print user errors as plain lines instead of a stack trace."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # Every rank finds the same mistake in a config: one of them on each machine says so.
            if error.status != EXIT_BAD_INPUT or os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr)
            return error.status
        except Stopped:
            print("stopped before training began; run the same command again", file=sys.stderr)
            return EXIT_PREEMPTED
        except KeyboardInterrupt:
            # Training saves and leaves by itself; elsewhere there is nothing to save yet.
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # `python -m model describe gpt2-124m | head` closes our output early: not a failure.
            # What is still to be flushed goes nowhere, instead of failing at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_OK

    return wrapped
