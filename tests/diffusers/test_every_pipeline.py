"""Every pipeline class that diffusers exports is on the support page, and its denoisers are found and attached to."""

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

import every_pipeline
import support_page

EXPORTED = every_pipeline.exported()


def test_the_page_has_every_exported_pipeline_and_u_net():
    import diffusers

    page = support_page.PAGE.read_text(encoding="utf-8")
    nets = {
        n for n in dir(diffusers) if n.endswith(("UNet", "UNetModel")) or n.startswith(("UNet", "UVit", "UniDiffuserModel"))
    }
    assert [name for name in [*EXPORTED, *sorted(nets)] if f"`{name}`" not in page] == []


def test_one_without_denoisers_says_why():
    without = [each for each in EXPORTED.values() if not each.denoisers]
    assert [each.name for each in without if not each.why_not] == []
    assert set(every_pipeline.WHY_NOT) <= {each.name for each in without}, "one of them has denoisers now"


def test_all_denoisers_of_every_pipeline_are_attached_to():
    attached = {each.name: each.attached() for each in EXPORTED.values() if each.denoisers}
    assert len(attached) >= 270
    assert {attached[case.cls.split()[0]] for case in every_pipeline.PIPES.values()} == {"stack"}
