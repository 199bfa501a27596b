"""The shipped presets: complete, reachable by every name, with the origin's recommended settings."""

import math
import subprocess
import sys

import numpy as np
import pytest

import magpolicy
from magpolicy import PresetError, preset, presets, simulate

NAMES = list(presets())

# Zehong-Ma/ComfyUI-MagCache, README: threshold, retention, K
RECOMMENDED = {
    "flux": (0.24, 0.1, 5),
    "chroma": (0.10, 0.25, 2),
    "hunyuan_video": (0.24, 0.2, 6),
    "wan2.1_t2v_1.3B": (0.12, 0.2, 4),
    "wan2.1_t2v_14B": (0.24, 0.2, 6),
    "wan2.1_i2v_480p_14B": (0.24, 0.2, 6),
    "wan2.1_i2v_720p_14B": (0.24, 0.2, 6),
    "flux_kontext": (0.05, 0.2, 4),
    "qwen_image": (0.10, 0.2, 2),
    "hunyuan_video1.5": (0.03, 0.25, 2),
    "wan2.1_vace_1.3B": (0.02, 0.2, 3),
    "wan2.1_vace_14B": (0.02, 0.2, 3),
}


def test_all_published_tables_ship():
    # Plugins installed beside us may add theirs.
    assert len(NAMES) == len(set(NAMES)) >= 95
    assert len(presets()) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_alias_finds_its_preset(name):
    found = presets()[name]
    assert found.name == name
    for alias in (name, name.upper(), *found.aliases, *(alias.lower() for alias in found.aliases)):
        assert preset(alias).name == name


def test_no_two_presets_share_an_alias():
    every = [alias.lower() for p in presets().values() for alias in {p.name, *p.aliases}]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(("alias", "expected"), RECOMMENDED.items())
def test_recommended_settings_of_the_origin(alias, expected):
    found = preset(alias)
    assert (found.threshold, found.retention, found.max_skips) == expected


@pytest.mark.parametrize("name", NAMES)
def test_what_a_preset_says_of_itself_is_plausible(name):
    found = presets()[name]
    assert found.source
    assert found.family
    assert found.semantics in magpolicy.semantics_names()
    assert found.semantics != "magpolicy"
    assert found.steps == found.curve.first_step + len(found.curve)
    for stream in found.curve.streams:
        values = found.curve.of(stream)
        assert all(0.3 < value < 3 for value in values)
        assert 0.05 < found.curve.product(stream) < 10
    for setting in found.settings:
        assert setting.threshold is None or 0 < setting.threshold < 1
        assert setting.retention is None or 0 <= setting.retention < 1
        assert setting.max_skips is None or 1 <= setting.max_skips <= 10
        assert setting.source
    published = [(s.threshold, s.max_skips, s.retention) for s in found.settings]
    assert found.threshold is None or (found.threshold, found.max_skips, found.retention) in published


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("semantics", ["magpolicy", "native"])
def test_every_preset_simulates_at_any_number_of_steps(name, semantics):
    found = presets()[name]
    more = {} if found.threshold is not None else {"threshold": 0.12, "max_skips": 2, "retention": 0.2}
    max_skips = found.max_skips or 2
    how = found.semantics if semantics == "native" else None
    for steps in (1, 2, 4, 8, 20, 30, 60):
        schedule = simulate(name, steps=steps, semantics=how, **more)
        assert schedule.steps == steps
        assert 1 <= schedule.computed <= steps
        assert schedule.streams == found.curve.streams
        for mask in schedule.masks:
            assert mask[0]
            strip = "".join("c" if computes else "." for computes in mask)
            assert "." * (max_skips + 1) not in strip
    assert simulate(name, semantics=how, **more).steps == found.steps


@pytest.mark.parametrize("name", NAMES)
def test_experts_switch_within_the_run_and_in_proportion(name):
    found = presets()[name]
    switches = [found.expert_step(steps) for steps in range(1, 61)]
    if found.expert_boundary is None:
        assert set(switches) == {None}
        return
    assert all(0 <= switch <= steps for steps, switch in enumerate(switches, 1))
    assert switches == sorted(switches)
    known = found.expert_boundary.get("split_step")
    if isinstance(known, int):
        assert found.expert_step(found.expert_boundary["at_steps"]) == known


def test_an_expert_switch_given_in_noise_levels_is_found():
    sigmas = np.linspace(1, 0.02, 40)
    schedule = simulate("wan2.2-t2v-a14b", sigmas=sigmas, retention=0.0)
    switch = int((sigmas >= 0.875).sum())
    assert schedule.decisions[0][switch] is magpolicy.Decision.NO_RESIDUAL


@pytest.mark.parametrize(
    ("name", "near"),
    [("flux.1-dve", "flux.1-dev"), ("wan2.1-t2v-1.3", "wan2.1-t2v-1.3b"), ("Qwen/QwenImage", "Qwen/Qwen-Image")],
)
def test_an_unknown_name_suggests_what_comes_close(name, near):
    with pytest.raises(PresetError, match="did you mean") as caught:
        preset(name)
    assert name in str(caught.value)
    assert near in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["", "zzzzzzzzzz", "…", "a" * 10_000])
def test_a_name_like_nothing_says_where_to_look(name):
    with pytest.raises(PresetError, match="magpolicy presets") as caught:
        preset(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [5, None, ["flux"]])
def test_what_is_no_name_is_said(name):
    with pytest.raises(PresetError, match=r"must be a preset's name, alias or file; try 'flux\.1-dev'"):
        preset(name)


def test_presets_is_a_mapping():
    table = presets()
    assert "flux.1-dev" in table
    assert "flux.1-dve" not in table
    with pytest.raises(KeyError):
        table["flux.1-dve"]
    assert len(list(table.items())) == len(table)
    with pytest.raises(TypeError):
        table["flux.1-dev"] = table["chroma"]


def test_a_preset_without_published_settings_asks_for_them():
    with pytest.raises(magpolicy.ArgumentError, match=r"threshold=None: preset 'wan2.1-t2v-14b-eval' has no published"):
        simulate("wan2.1-t2v-14b-eval")


def test_conflicts_between_publications_are_told():
    assert any("28-step tables" in text for text in preset("flux.1-dev").conflicts)


def test_settings_given_win_over_the_presets():
    own = simulate("flux")
    assert simulate("flux", threshold=0.24, max_skips=5, retention=0.1) == own
    assert simulate("flux", threshold=0.0).computed > own.computed
    assert simulate("flux", max_skips=0).skipped == 0
    assert simulate(preset("flux")) == own
    assert not math.isinf(own.speedup)


def test_importing_magpolicy_reads_no_presets():
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import magpolicy
magpolicy.simulate([1.0, 1.0], threshold=0.1, max_skips=1, retention=0)
assert not [path for path in opened if path.endswith("presets.json")], opened
magpolicy.preset("flux")
assert [path for path in opened if path.endswith("presets.json")]
"""
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=path, timeout=60)


def test_an_example_of_a_documentation_is_found_and_not_suggested():
    examples = [name for name, found in presets().items() if found.is_example]
    assert examples == ["flux.1-schnell-4-doc-example", "framepack-f1-musubi-example"]
    for name in examples:
        for known in (name, *preset(name).aliases):
            with pytest.raises(PresetError, match="is not known") as caught:
                preset(known[:-1])
            assert known not in str(caught.value)
