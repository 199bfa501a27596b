"""The process that has an engine imported: runs the scenarios that it is asked for, and answers in JSON.

``python -m engine_process.answering MODULE``: the module with the scenarios, functions that return plain data. With
``FORKED = True`` in it each scenario is a process of its own, forked from this one: what it patches is not for the next.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from typing import Any

MARK = "magpolicy-answer "


def main() -> None:
    home = os.environ["MAGPOLICY_HOME"]
    out = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    scenarios = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["MAGPOLICY_HOME"] = tempfile.mkdtemp(dir=home)  # what a scenario's runs taught is not for the next
        if not getattr(scenarios, "FORKED", False):
            print(_answer(scenarios, asked), file=out, flush=True)
        elif (child := os.fork()) == 0:
            print(_answer(scenarios, asked), file=out, flush=True)
            os._exit(0)
        elif code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            died = {"error": "Died", "message": f"{asked['name']} ended with {code}", "traceback": ""}
            print(MARK + json.dumps(died), file=out, flush=True)


def _answer(scenarios: Any, asked: dict[str, Any]) -> str:
    try:
        answer = {"found": getattr(scenarios, asked["name"])(**asked["arguments"])}
    except (Exception, SystemExit) as error:
        answer = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    return MARK + json.dumps(answer)


if __name__ == "__main__":
    main()
