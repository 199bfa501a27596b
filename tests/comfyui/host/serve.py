"""ComfyUI as a server, as users start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from host.fetch import DEFAULT, obtain
from host.load import ARGUMENTS, STAND_INS


@frozen
class Server:
    """A server that is up. Its ``base`` folder holds ``models``, ``custom_nodes``, ``input``, ``output`` and ``user``."""

    url: str
    base: Path
    log_file: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        """The JSON answer to a GET of ``/path``."""
        with urllib.request.urlopen(f"{self.url}/{path.lstrip('/')}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST of ``body`` as JSON; an error's body is returned as well."""
        request = urllib.request.Request(
            f"{self.url}/{path.lstrip('/')}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read() or b"null")

    def run(self, prompt: Mapping[str, Any], timeout: float = 120.0) -> dict[str, Any]:
        """Queue a workflow in API format and wait for its history entry (``outputs``, ``status``)."""
        queued = self.post("prompt", {"prompt": prompt})
        if "prompt_id" not in queued:
            raise AssertionError(f"not accepted: {queued}")
        key = queued["prompt_id"]
        for _ in _until(timeout):
            history = self.get(f"history/{key}")
            if key in history:
                entry: dict[str, Any] = history[key]
                return entry
            self.alive()
        raise AssertionError(f"no answer in {timeout} s; log:\n{self.log[-4000:]}")

    def alive(self) -> None:
        """Complain if the process has ended."""
        if self.process.poll() is not None:
            raise AssertionError(f"ComfyUI ended with {self.process.returncode}; log:\n{self.log[-4000:]}")


@contextmanager
def serve(
    base: Path,
    version: str = DEFAULT,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    front_end: bool = False,
    timeout: float = 120.0,
) -> Iterator[Server]:
    """ComfyUI's ``main.py`` on a loopback port, ended when the block is left.

    Args:
        base: its base folder; node packs belong into ``base/custom_nodes``. Made if missing.
        version: of ComfyUI.
        arguments: more of its command line.
        environment: more environment variables.
        front_end: serve the installed front-end package, not an empty page.

    Raises:
        Unavailable: it cannot be fetched.
    """
    folder = obtain(version)
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(folder / "main.py"),
        *ARGUMENTS,
        "--listen",
        "127.0.0.1",
        "--port",
        str(port := _free_port()),
    ]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    if not front_end:
        page = base / "front_end"
        page.mkdir(exist_ok=True)
        (page / "index.html").write_text("<!doctype html><title>none</title>")
        command += ["--front-end-root", str(page)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(STAND_INS)]))
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
    log_file = base / "server.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments], cwd=base, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", base, log_file, process)
    try:
        _wait(server, timeout)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, timeout: float) -> None:
    for _ in _until(timeout):
        server.alive()
        try:
            server.get("system_stats")
        except OSError:
            continue
        return
    raise AssertionError(f"ComfyUI did not come up in {timeout} s; log:\n{server.log[-4000:]}")


def _until(timeout: float) -> Iterator[None]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        yield
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
