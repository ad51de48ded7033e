"""Stands in for a trainer under the supervisor: RUN_DIR PLAN, where each start takes one word.

The words: a number, complete so many steps and fail; `done`, `bad`, `saved`, how it leaves;
`killed`, by a signal; `orphan`, fail and leave a process; `lie`, say 75 where the launcher says 1;
`wait`, until a signal comes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runtime import outcome
from runtime.errors import leave


def main() -> None:
    run_dir, plan = Path(sys.argv[1]), sys.argv[2].split(",")
    (run_dir / "health").mkdir(parents=True, exist_ok=True)
    with (run_dir / "starts").open("a") as file:
        file.write("x")
        file.flush()
        number = file.tell() - 1
    word = plan[min(number, len(plan) - 1)]
    outcome.tell(run_dir=str(run_dir))
    if word.isdigit():
        (run_dir / "health" / "rank_00000.json").write_text(json.dumps({"step": int(word)}))
        failure = {
            "kind": "failed",
            "what": f"rank 0 failed after {word}",
            "time": time.time(),
            "traceback": "T\nE: x",
        }
        (run_dir / "health" / f"failure_{number}.json").write_text(json.dumps(failure))
        leave(1)
    if word == "orphan":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(run_dir)])
        leave(1)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "lie":
        outcome.tell(status=75)
        os._exit(1)
    if word == "wait":
        # Blocked, not handled: what comes just before a sleep is handled only after it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("waiting", flush=True)
        leave(75 if signal.sigtimedwait([signal.SIGTERM], 600) else 1)
    leave({"done": 0, "bad": 2, "saved": 75}[word])


if __name__ == "__main__":
    main()
