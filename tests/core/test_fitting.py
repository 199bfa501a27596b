"""Calibrations of another model are refused, and differences of a run from its calibration are said."""

import attrs
import numpy as np
import pytest

import magpolicy
from magpolicy import ArgumentError, Calibration, Preset
from magpolicy.adapter import ModelIdentity, check_fits, differences

PATH = np.cumsum(np.random.default_rng(0).normal(size=(4, 2, 4)), axis=0)
FLUX, WAN = ["FluxTransformer2DModel", "ModelMixin"], ["WanTransformer3DModel", "ModelMixin"]


def made(model="WanTransformer3DModel", streams=("cond", "uncond"), **known):
    identity = {"identity": ModelIdentity(model).to_dict(), "versions": {"diffusers": "1"}} if model else {}
    return Calibration.from_residuals(dict.fromkeys(streams, PATH), provenance=identity | known, name="mine")


@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: Preset(name="mine", curve=c.curve, calibration=c)], ids=["c", "preset"]
)
def test_a_calibration_of_another_class_is_refused_in_one_sentence(wrap):
    with pytest.raises(
        ArgumentError, match=r"'mine' was measured on a WanTransformer3DModel, target is a FluxTransformer2DModel"
    ):
        check_fits(wrap(made()), FLUX, host="diffusers")
    check_fits(wrap(made()), WAN, host="diffusers")
    check_fits(wrap(made("ModelMixin")), WAN, host="diffusers")  # of a class it is derived from


@pytest.mark.parametrize(
    ("measured", "host", "target", "fits"),
    [
        ("WanTransformer3DModel", "ComfyUI", "WAN21", True),
        ("WanTransformer3DModel", "ComfyUI", "Flux", False),
        ("FluxTransformer2DModel", "ComfyUI", "Flux", True),
        ("WanTransformer3DModel", "torch", "WanModel", True),
        ("WanTransformer3DModel", "torch", "Net", False),
        ("WanVACETransformer3DModel", "diffusers", "WanTransformer3DModel", False),
        ("Flux2Transformer2DModel", "diffusers", "FluxTransformer2DModel", False),
    ],
)
def test_a_model_has_another_class_in_another_host(measured, host, target, fits):
    if fits:
        check_fits(made(measured), [target], host=host)
    else:
        with pytest.raises(ArgumentError, match="another path"):
            check_fits(made(measured), [target], host=host)


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"model": "m"},
        {"model": "org/wan"},
        {"repo": "org/wan", "versions": {}},
        {"model": "FluxTransformer2DModel", "versions": {}},
    ],
    ids=str,
)
def test_an_old_calibration_is_accepted_unless_it_says_another_class(provenance):
    old = attrs.evolve(made(""), provenance=provenance)
    check_fits(old, FLUX, host="torch")
    if "model" in provenance and "versions" in provenance:
        with pytest.raises(ArgumentError, match="target is a WanTransformer3DModel"):
            check_fits(old, WAN, host="torch")


def test_other_sources_are_let_pass():
    for source in (None, [1.0, 1.1], magpolicy.preset("flux"), magpolicy.Schedule.from_mask([True])):
        check_fits(source, WAN, host="diffusers", roles=("cond", "uncond"))


@pytest.mark.parametrize(
    ("streams", "known", "fits"),
    [
        (("a", "b"), {}, False),
        (("a", "b"), {"pipeline": "WanPipeline"}, True),
        (("cond", "b"), {}, True),
        (("single",), {}, True),
        (("uncond 2",), {}, True),
    ],
)
def test_streams_that_the_host_does_not_have_are_refused(streams, known, fits):
    roles = ("cond", "uncond")
    check_fits(made(streams=streams, **known), WAN, host="diffusers")  # there the user names them
    if fits:
        check_fits(made(streams=streams, **known), WAN, host="diffusers", roles=roles)
    else:
        with pytest.raises(ArgumentError, match="has the streams a, b, those of target are cond and uncond"):
            check_fits(made(streams=streams, **known), WAN, host="diffusers", roles=roles)


def test_differences_are_named_and_what_is_not_known_is_none():
    found = made(scheduler="UniPC", guidance=5.0, scope="stack", stack="2 Block", shift=3.0)
    same = {"scheduler": "UniPC", "guidance": 5.0, "scope": "stack", "stack": "2 Block", "shift": 3.0}
    assert differences(found, same, ["cond", "uncond", "cond 2", "uncond, again", "cond [0:4]"]) == ()
    assert differences(found, {"scheduler": None}) == differences(made(), same) == ()
    other = {"scheduler": "Euler", "guidance": 7.5, "scope": "model", "stack": "1 Block", "shift": "dynamic"}
    said = differences(found, other, ["cond", "third", "third"])
    assert "the calibration is of guidance 5, this run has 7.5" in said
    assert "the calibration is of scheduler UniPC, this run has Euler" in said
    assert said[-1] == "the calibration has no stream 'third', which goes by that of 'cond'"
    assert len(said) == 6
    left = made(guidance=5.0, learned="2026-01-01T00:00:00+00:00")  # nobody calibrated anything
    assert differences(left, other, ["third"]) == (
        "earlier runs had guidance 5, this run has 7.5",
        "earlier runs had no stream 'third', which goes by that of 'cond'",
    )
    both = made(guidance=[5.0, 7.5])  # merged
    assert differences(both, other) == ()
    assert differences(made(streams=("single",)), {}, ["cond", "uncond"]) == ()
