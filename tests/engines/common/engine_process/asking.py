"""Asking the process that has an engine imported: it patches libraries, and takes ten seconds or more to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_process.answering import MARK

_TESTS = Path(__file__).parents[3]
_OWN = (_TESTS / "engines" / "common", _TESTS / "common")
_QUIET = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


class EngineError(Exception):
    """What a scenario raised: ``kind`` is the name of its class."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["message"])
        self.kind: str = answer["error"]
        self.add = answer["traceback"]

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.add}"


class Engine:
    """A process that has an engine imported.

    Args:
        scenarios: the module whose functions it is asked for.
        paths: what comes first on its ``sys.path``.
        home: a folder for its log and for what is learned.
        variables: of its environment.
    """

    def __init__(self, scenarios: str, paths: Sequence[Path], home: Path, variables: Mapping[str, str]) -> None:
        folders = [str(path) for path in (*paths, *_OWN)]
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        settings = {"PYTHONPATH": os.pathsep.join([*folders, *inherited]), "MAGPOLICY_HOME": str(home)}
        self.log = home / "engine.log"
        self._log = self.log.open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine_process.answering", scenarios],
            env={**os.environ, **_QUIET, **_OFFLINE, **variables, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, name: str, **arguments: Any) -> Any:
        """What the scenario of that name found.

        Raises:
            EngineError: what it raised.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if MARK in line:
                answer = json.loads(line.partition(MARK)[2])
                if "error" in answer:
                    raise EngineError(answer)
                return answer["found"]
        self._log.seek(0)
        raise AssertionError(f"the engine ended (exit {self._process.wait(20)}): {self._log.read()[-4000:]}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process.stdout.close()
        self._log.close()
