"""What a server and a request ask of the adapter for SGLang-diffusion. The engine itself is not run here."""

import pytest

import magpolicy

settings = pytest.importorskip("magpolicy_sglang._settings", reason="the adapters are not installed")


def test_a_request_takes_the_place_of_the_servers_aim_and_keeps_its_source():
    server = {"calibration": "wan.json", "speedup": 2.0}
    assert settings.of_request(server, {"magpolicy": {"computed": 9}}) == {"calibration": "wan.json", "computed": 9}
    assert settings.of_request(server, None) == server
    assert settings.of_request(server, {"magpolicy": False}) is None
    assert settings.of_request(None, {}) is None


def test_a_setting_that_is_not_known_is_named_with_the_nearest_one(monkeypatch):
    monkeypatch.setenv(settings.VARIABLE, '{"speedupp": 2.0}')
    with pytest.raises(magpolicy.ArgumentError, match="did you mean 'speedup'"):
        settings.of_server()
