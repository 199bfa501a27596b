"""What a server and a request ask of the adapter for SGLang-diffusion. The engine itself is not run here."""

import pytest

import magpolicy

settings = pytest.importorskip("magpolicy_sglang._settings", reason="the adapters are not installed")


def test_a_request_asks_for_settings_for_none_or_for_nothing():
    assert settings.of_request({"magpolicy": {"computed": 9}, "strength": 0.5}) == {"computed": 9}
    assert settings.of_request({"magpolicy": False}) is False
    assert settings.of_request({}) is None
    assert settings.of_request(None) is None


def test_a_wrong_value_is_named_before_there_is_a_model(monkeypatch):
    monkeypatch.setenv(settings.VARIABLE, '{"speedup": 0.5}')
    with pytest.raises(magpolicy.ArgumentError, match=r"^MAGPOLICY_SGLANG: speedup=0\.5 must be >= 1; try 2\.0$"):
        settings.of_server()


@pytest.mark.parametrize("name", ["learn", "calibrate", "group", "scope", "blocks", "storage_dtype", "steps"])
def test_what_json_cannot_say_or_the_engine_settles_is_no_setting(name):
    assert name not in settings.KEYWORDS


@pytest.mark.parametrize("name", ["calibration", "preset", "ratios", "schedule", "learn", "calibrate", "group", "steps"])
def test_a_request_names_no_file_that_the_server_would_read(name):
    with pytest.raises(magpolicy.ArgumentError, match=f"{name!r} is no setting of a request"):
        settings.of_request({"magpolicy": {name: None}})


def test_a_setting_that_is_not_known_is_named_with_the_nearest_one(monkeypatch):
    monkeypatch.setenv(settings.VARIABLE, '{"speedupp": 2.0}')
    with pytest.raises(magpolicy.ArgumentError, match="did you mean 'speedup'"):
        settings.of_server()
