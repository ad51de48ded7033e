import os
import signal

import pytest
import torch
from accelerate.state import AcceleratorState

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process():
    """A run leaves traces in its process: accelerate's singletons, signal handlers, the umask."""
    torch.manual_seed(1234)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    umask = os.umask(0o022)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)
