"""A user's own loop, checked and never run. As in uses_core.py, ``type: ignore`` stands where a checker has to complain."""

from typing_extensions import assert_type

import magpolicy
import magpolicy_torch
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


model = Model()
handle: magpolicy_torch.Handle = magpolicy.attach(model, speedup=2.0)
with handle.run(steps=28):
    pass
assert_type(handle.module, nn.Module)
assert_type(handle.stack.blocks, tuple[nn.Module, ...])
assert_type(handle.calibration, magpolicy.Calibration)
assert_type(handle.report, magpolicy_torch.Report)
assert_type(handle.report.computed, int)
assert_type(handle.report.estimated_speedup, float | None)
handle.detach()

with magpolicy.Session("flux", steps=28) as session:
    out = magpolicy_torch.run_step(session, torch.zeros(1, 4, 8), lambda x: x + 1)
    assert_type(out, torch.Tensor)
    magpolicy_torch.run_step(session, 3.0, lambda x: x)  # type: ignore[arg-type]
