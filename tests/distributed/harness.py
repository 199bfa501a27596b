"""Tests with two processes: a pair of ranks that stays up and runs one case after another.

A case is a function of the test module itself. It is called on both ranks, in processes with an initialised default group
(gloo, loopback). What it returns on each, lists, dictionaries, numbers, strings and tensors, comes back to the test::

    from harness import Pair
    import standins


    def sums(value):  # runs on both ranks
        import torch

        total = torch.tensor([float(value)])
        torch.distributed.all_reduce(total)
        return {"rank": torch.distributed.get_rank(), "total": total.item()}


    def test_sums(pair: Pair):
        first, second = pair(sums, value=3)
        assert first["total"] == second["total"] == 6

- ``pair`` is a fixture of this folder's ``conftest.py``, which also gives every test here the mark ``distributed``.
- Arguments and results are pickled, so a tensor may be either; keep both small. Import what is heavy (diffusers, zoo, pipes)
  within the case or in a helper module, where the test process need not have it. Modules of ``tests/distributed`` and of
  ``tests/diffusers`` are importable by their plain names in both.
- An exception on a rank fails the test, with each rank's traceback. What a case expects to be raised it catches itself.
- ``pair(case, timeout=20)``: after so many seconds (60 by default) both processes are ended, and the test fails with the place
  each rank hung at. After a failure of any kind the next case gets a fresh pair.
- ``pair.fails(case)`` returns the text of such a failure, for what is expected to hang or to raise on one rank.
- Ranks share the user folder of the test (``MAGPOLICY_HOME``), as processes of one machine; with ``apart=True`` each has its
  own.
- A pair takes 5 to 10 s to start, of which nearly all is imports, and a case next to nothing. So a case that expects an error
  catches it, lets no rank hang, and leaves no patches behind.
- One process imports, and each rank is forked from it, with the variables that ``torchrun`` sets: nothing has run in it yet.

Stand-ins for what a CPU lacks are in ``standins.py``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZE = 2
IMPORTED = ("torch.distributed", "diffusers", "magpolicy_diffusers", "pipes", "zoo")  # before the ranks part
START, GRACE = 180, 5  # seconds to import everything on a busy machine; for the other rank after one has raised
COLLECTIVE = 45  # seconds after which a collective raises on the ranks themselves


class Failed(AssertionError):
    """A case raised on a rank, or was not done in time; tells of each rank."""


class Pair:
    """Two ranks, started when the first case comes."""

    def __init__(self) -> None:
        self._ranks: list[Connection] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: list[int] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, case: Callable[..., Any], *, timeout: float = 60, apart: bool = False, **arguments: Any) -> list[Any]:
        """What ``case(**arguments)`` returns on each rank.

        Raises:
            Failed: it raised, or took longer than ``timeout`` seconds.
        """
        self._start()
        home = os.environ["MAGPOLICY_HOME"]
        name = f"{Path(inspect.getfile(case)).stem}:{case.__qualname__}"
        for rank, connection in enumerate(self._ranks):
            folder = str(Path(home) / f"rank{rank}") if apart else home
            connection.send_bytes(pickle.dumps((name, arguments, folder)))
        answers = self._answers(timeout)
        if all(kind == "result" for kind, _ in answers.values()) and len(answers) == SIZE:
            return [answers[rank][1] for rank in range(SIZE)]
        try:
            raise Failed(f"{name}\n" + "\n".join(f"--- rank {rank}\n{self._told(rank, answers)}" for rank in range(SIZE)))
        finally:
            self.close()

    def fails(self, case: Callable[..., Any], **options: Any) -> str:
        """The text of the failure that ``case`` ends with."""
        try:
            results = self(case, **options)
        except Failed as failed:
            return str(failed)
        raise AssertionError(f"the case returned {results}")

    def _answers(self, timeout: float) -> dict[int, tuple[str, Any]]:
        answers: dict[int, tuple[str, Any]] = {}
        until = time.monotonic() + timeout
        while len(answers) < SIZE and (left := until - time.monotonic()) > 0:
            for connection in wait([c for r, c in enumerate(self._ranks) if r not in answers], left):
                rank = self._ranks.index(connection)
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    answers[rank] = "error", "its process ended"
                if answers[rank][0] == "error":  # the other one may wait for it
                    until = min(until, time.monotonic() + GRACE)
        return answers

    def _told(self, rank: int, answers: dict[int, tuple[str, Any]]) -> str:
        kind, text = answers.get(rank, ("late", ""))
        if kind == "result":
            return f"returned {text!r}"
        if kind == "error":
            return f"{text}\n{self._output()}" if text == "its process ended" else str(text)
        stack = self._file(f"stack{rank}")
        before = stack.stat().st_size
        os.kill(self._pids[rank], signal.SIGUSR1)
        for _ in range(50):
            time.sleep(0.1)
            if stack.stat().st_size > before:
                break
        return "did not return; it is at\n" + stack.read_text()[before:]

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / name

    def _output(self) -> str:
        return self._file("output").read_text(errors="replace")[-4000:]

    def _start(self) -> None:
        if self._process is not None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="magpolicy-ranks-")
        address = str(self._file("socket"))
        command = [sys.executable, __file__, address]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        with Listener(address, "AF_UNIX") as listener:
            with self._file("output").open("wb") as output:
                self._process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            listener._listener._socket.settimeout(1)  # type: ignore[attr-defined]  # that a failed start is noticed
            met: dict[int, tuple[int, Connection]] = {}
            until = time.monotonic() + START
            while len(met) < SIZE and self._process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    connection = listener.accept()
                    rank, pid = pickle.loads(connection.recv_bytes())
                    met[rank] = pid, connection
        if len(met) < SIZE:
            told = self._output()
            self.close()
            raise Failed(f"the pair did not start:\n{told}")
        self._pids = [met[rank][0] for rank in range(SIZE)]
        self._ranks = [met[rank][1] for rank in range(SIZE)]

    def close(self) -> None:
        """End both processes, whatever they do."""
        for connection in self._ranks:
            connection.close()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the ranks, too: they are of its group
            process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._ranks, self._pids, self._folder = [], [], None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _start_ranks(address: str) -> None:
    """Import what is heavy, and part into two ranks. When one of them ends, so does the other."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "diffusers")]
    for module in IMPORTED:
        importlib.import_module(module)
    os.environ |= {"WORLD_SIZE": str(SIZE), "LOCAL_WORLD_SIZE": str(SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for rank in range(SIZE):
        if os.fork() == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _serve(address, rank)
    os.wait()
    os.killpg(0, signal.SIGKILL)


def _serve(address: str, rank: int) -> None:
    """What each rank does: take cases until the test process closes the connection."""
    from datetime import timedelta

    import torch

    with (Path(address).parent / f"stack{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE))
        with Client(address, "AF_UNIX") as connection:
            connection.send_bytes(pickle.dumps((rank, os.getpid())))
            for name, arguments, home in _cases(connection):
                os.environ["MAGPOLICY_HOME"] = home
                module, _, function = name.partition(":")
                try:
                    found: Any = importlib.import_module(module)
                    for part in function.split("."):
                        found = getattr(found, part)
                    answer = pickle.dumps(("result", found(**arguments)))
                except BaseException:
                    answer = pickle.dumps(("error", traceback.format_exc()))
                connection.send_bytes(answer)
    os._exit(0)  # the other one may be gone, and then a shutdown would wait for it


def _cases(connection: Connection) -> Iterator[tuple[str, dict[str, Any], str]]:
    while True:
        try:
            yield pickle.loads(connection.recv_bytes())
        except EOFError:
            return


def _end_with(parent: int) -> None:
    """End this process when the one that it was forked from is gone, even within a collective."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _start_ranks(sys.argv[1])
