"""``upstream/vllm-omni``: the entry point that the engine asks for is there, and imports nothing heavy before it is called."""

import importlib.metadata

import magpolicy_vllm_omni


def test_the_engine_finds_the_plugin():
    found = importlib.metadata.entry_points(group="vllm_omni.general_plugins")
    (plugin,) = {point.value: point for point in found if point.name == "magpolicy"}.values()
    assert plugin.value == "magpolicy_vllm_omni:register"
    assert callable(magpolicy_vllm_omni.register)
