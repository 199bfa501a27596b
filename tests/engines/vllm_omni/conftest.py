"""The engine is imported in a process of its own: it patches libraries, and takes ten seconds. All tests ask that one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_engine.fetch import Unavailable, obtain
from vllm_engine.serve import MARK

HERE = Path(__file__).parent


class EngineError(Exception):
    """What a scenario raised: ``kind`` is the name of its class."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["message"])
        self.kind: str = answer["error"]
        self.add = answer["traceback"]

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.add}"


class Engine:
    """The process that has vLLM-Omni imported."""

    def __init__(self, code: Path, home: Path) -> None:
        paths = [str(code), str(HERE), str(HERE.parents[1] / "diffusers"), *filter(None, [os.environ.get("PYTHONPATH")])]
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_PLUGINS": "magpolicy"}
        self._log = (home / "engine.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vllm_engine.serve"],
            env={**os.environ, **quiet, **offline, "PYTHONPATH": os.pathsep.join(paths), "MAGPOLICY_HOME": str(home)},
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


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM-Omni, in a process of its own."""
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    try:
        code = obtain()
    except Unavailable as error:
        pytest.skip(f"no vLLM-Omni: {error}")
    found = Engine(code, tmp_path_factory.mktemp("vllm-omni"))
    yield found
    found.close()
