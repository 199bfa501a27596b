"""The process that has the engine imported: runs the scenarios that it is asked for, and answers in JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
import warnings

MARK = "magpolicy-answer "


def main() -> None:
    home = os.environ["MAGPOLICY_HOME"]
    out = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    scenarios = importlib.import_module("vllm_engine.scenarios")
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["MAGPOLICY_HOME"] = tempfile.mkdtemp(dir=home)  # what a scenario's runs taught is not for the next
        try:
            answer = {"found": getattr(scenarios, asked["name"])(**asked["arguments"])}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        print(MARK + json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
