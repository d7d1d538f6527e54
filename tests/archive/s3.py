"""An S3 server of moto's, over real HTTP, in a process of its own: `python -m tests.archive.s3` is that process."""

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

from tests.servers import ROOT

VARIABLES = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.archive.s3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # each request
        cwd=ROOT,
        env={**os.environ, **VARIABLES},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()  # which ends it, as the end of this process would
        process.stdout.close()
        process.wait()


def post(url: str, data: bytes = b"", method: str = "POST") -> None:
    """A request beside the client library."""
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Content-Type": "text/plain"}, method=method)
    ) as answer:
        answer.read()


def main() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
