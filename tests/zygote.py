"""A process that has imported the program and forks for each run of it: a run then costs a fork, not an interpreter.

Each run is a process of its own, with its arguments, its environment and its files. What only a fresh interpreter
shows (its encoding, its imports) is tested by those that start one.
"""

import atexit
import contextlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback

_FDS = 3  # stdout, stderr, and where the exit code goes


def main() -> None:
    """Fork for each request, until the other side is gone."""
    import fastapi  # noqa: F401
    import httpx  # noqa: F401
    import rich.console
    import rich.progress
    import rich.table  # noqa: F401

    import meshaudit.api.app
    import meshaudit.archive_logs
    import meshaudit.cli
    import meshaudit.demo  # noqa: F401

    asking = socket.socket(fileno=int(sys.argv[1]))
    # Nobody waits for the forks: the kernel forgets them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asking.sendall(b"r")
    while True:
        text, fds, _, _ = socket.recv_fds(asking, 1 << 20, _FDS)
        if not text:
            return
        if os.fork() == 0:
            asking.close()
            _run(json.loads(text), *fds)
        for fd in fds:
            os.close(fd)


def _run(request: dict[str, object], out: int, err: int, status: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(err, 2)
        for number, name in ((1, "stdout"), (2, "stderr")):
            raw = io.FileIO(number, "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", write_through=number == 2))
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[call-overload]
        time.tzset()
        os.chdir(request["cwd"])  # type: ignore[arg-type]
        sys.argv = ["meshaudit", *request["args"]]  # type: ignore[misc]
        code = _code()
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.write(status, str(code).encode())
    os._exit(0)


def _code() -> int:
    from meshaudit.cli import main as program

    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
