"""Two workers of the engine that share each request, over gloo: forked from the process that has it imported."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LIMIT = 60
"""Seconds after which a worker is ended that waits for another."""


def on_two(work: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``work(rank)`` returned in each of two workers; its exception as ``{"error": ..., "message": ...}``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = [Path(os.environ["MAGPOLICY_HOME"]) / f"rank-{rank}.json" for rank in range(2)]
    for place in places:
        place.unlink(missing_ok=True)
    workers = [_forked(rank, port, place, work) for rank, place in enumerate(places)]
    for worker in workers:
        os.waitpid(worker, 0)
    return [json.loads(place.read_text()) if place.exists() else {"error": "it was ended"} for place in places]


def _forked(rank: int, port: str, place: Path, work: Callable[[int], dict[str, Any]]) -> int:
    worker = os.fork()
    if worker:
        return worker
    signal.alarm(_LIMIT)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=port)
    try:
        found = work(rank)
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    place.write_text(json.dumps(found))
    os._exit(0)
