"""An adapter's distribution, checked and never run: what magpolicy.adapter, the hosts' packages and the metrics give it."""

from typing_extensions import assert_type

import magpolicy
import magpolicy.adapter
import magpolicy_diffusers
import magpolicy_metrics


def counted(session: magpolicy.Session) -> None:
    assert_type(magpolicy.adapter.decides_by(session), dict[str, tuple[str, str]])


handle: magpolicy_diffusers.Handle = magpolicy.attach(object(), speedup="fast")
assert_type(handle.calibration, magpolicy.Calibration)
assert_type(magpolicy_metrics.prometheus(), magpolicy_metrics.Metrics)
assert_type(magpolicy.plugins(), tuple[magpolicy.PluginInfo, ...])
magpolicy.adapter.decides_by(handle)  # type: ignore[arg-type]
