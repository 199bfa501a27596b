"""The route that the panel asks, on a running server."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from host import Server

import magpolicy

FLUX = {"model_type": "flux", "magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1}


def ask(server: Server, steps: Any = 20, **inputs: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.post("magpolicy/simulate", {"inputs": FLUX | inputs, "sampler": {"steps": steps}})
    return answer


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_the_preview_is_what_simulate_says(server: Server, steps: int) -> None:
    answer = ask(server, steps)
    schedule = magpolicy.simulate("flux", steps=steps, threshold=0.24, retention=0.1, max_skips=5, end_step=-1)
    assert magpolicy.Schedule.from_dict(answer["schedule"]) == schedule
    assert answer["strip"] == schedule.strip
    assert answer["text"] == str(schedule)


def test_settings_left_out_are_the_presets(server: Server) -> None:
    answer = server.post("magpolicy/simulate", {"inputs": {"model_type": "chroma"}})
    assert magpolicy.Schedule.from_dict(answer["schedule"]) == magpolicy.simulate("chroma")
    assert any("chroma" in note for note in answer["notes"])
    unset = dict.fromkeys(("magcache_thresh", "retention_ratio", "magcache_K"), -1)
    again = server.post("magpolicy/simulate", {"inputs": {"model_type": "chroma"} | unset})
    assert again["schedule"] == answer["schedule"]
    preset = magpolicy.preset("chroma")
    said = f"magcache_thresh {preset.threshold:g}, magcache_K {preset.max_skips}, retention_ratio {preset.retention:g}"
    assert f"the preset's: {said}" in again["notes"]


@pytest.mark.parametrize(
    ("inputs", "steps", "said"),
    [
        ({"magcache_thresh": -2}, 20, "magcache_thresh=-2 must be a number from -1 to 10"),
        ({"retention_ratio": 2}, 20, "retention_ratio=2 must be a number from -1 to 1"),
        ({"magcache_K": 1.5}, 20, "magcache_K=1.5 must be a whole number"),
        ({"model_type": "file: ../server.json"}, 20, "is not one of the node's list"),
        ({"model_type": "nothing"}, 20, "model_type='nothing' is not known"),
        ({"model_type": "/etc/preset.json"}, 20, "is not one of the node's list"),
        ({}, 0, "steps=0 must be a whole number from 1 to"),
        ({}, 10**9, "steps=1000000000 must be a whole number from 1 to"),
        ({}, "many", "steps='many' must be a whole number"),
    ],
)
def test_bad_settings_are_told_in_the_nodes_names(server: Server, inputs: dict[str, Any], steps: Any, said: str) -> None:
    assert said in ask(server, steps, **inputs)["error"]


def test_a_dozen_previews_of_a_panel_are_few_plans(server: Server) -> None:
    """Whatever order they arrive in, the newest that arrives is answered, and most others are given up."""

    def asked(steps: int) -> Any:
        inputs, sampler = {"speedup": "fast"}, {"steps": steps, "sampler_name": "euler", "scheduler": "simple"}
        question = {"panel": "a", "node": "MagPolicySpeedUp", "inputs": inputs, "sampler": sampler}
        return server.post("magpolicy/simulate", question)

    with ThreadPoolExecutor(12) as browser:
        answers = list(browser.map(asked, range(150, 162)))
    given_up = [answer for answer in answers if "newer question of this panel" in answer.get("error", "")]
    planned = [answer for answer in answers if "schedule" in answer]
    assert len(given_up) + len(planned) == 12
    assert planned
    assert len(given_up) >= 6
    assert "schedule" in asked(100)


@pytest.mark.parametrize(
    "body", [b"", b"nothing", b"[]", b'{"inputs": 3}', b'{"sampler": "x"}', b"{" * 100_000, b"[" * 60_000, b"\xff\xfe"]
)
def test_a_request_that_is_no_question_is_a_400(server: Server, body: bytes) -> None:
    request = urllib.request.Request(f"{server.url}/api/magpolicy/simulate", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 400
    assert b"request" in caught.value.read()
