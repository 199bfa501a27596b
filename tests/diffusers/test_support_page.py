"""The page on supported classes says what is measured here."""

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

import support_page


def test_the_page_is_what_is_measured():
    measured = support_page.page()
    assert "**no**" not in measured
    assert support_page.PAGE.read_text(encoding="utf-8") == measured, "run python tests/diffusers/support_page.py"
