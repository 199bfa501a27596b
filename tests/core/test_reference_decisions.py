"""Every published implementation's decisions, as recorded from its own code, come out of its semantics.

Left out of the record: cases in which the source skips before anything was computed (ours never does), and behaviour the
``notes`` of the semantics call a defect.
"""

import json
from pathlib import Path

import pytest

import magpolicy

RECORD = json.loads((Path(__file__).parent.parent / "data" / "reference_decisions.json").read_text(encoding="utf-8"))
IMPLEMENTATIONS = sorted(RECORD["implementations"])


def bits(mask):
    return "".join("1" if computes else "0" for computes in mask)


def simulated(case):
    name = case["implementation"]
    start = case.get("start_step", 0) + name.startswith("wan2gp/")  # there the start step itself computes
    return magpolicy.simulate(
        magpolicy.preset(case["table"]).curve,
        steps=case["steps"],
        threshold=case["threshold"],
        max_skips=case["max_skips"],
        retention=case["retention"],
        start_step=2 if name == "mlx-video" else start,
        end_step=case.get("end_step"),
        expert_step=case.get("split_step"),
        batched=case.get("batched", False),
        semantics=name,
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_decisions_equal_the_record(name):
    cases = [case for case in RECORD["cases"] if case["implementation"] == name]
    assert len(cases) >= 20
    for case in cases:
        schedule = simulated(case)
        for stream, expected in case["masks"].items():
            known = stream if stream in schedule.streams else schedule.streams[0]
            assert bits(schedule.stream_mask(known)) == expected, (case, stream)


def test_every_row_of_semantics_but_our_own_has_a_record():
    aliases = {"official/wan2.2"}  # its three variants have
    assert set(magpolicy.semantics_names()) - aliases - {"magpolicy"} == set(IMPLEMENTATIONS)
