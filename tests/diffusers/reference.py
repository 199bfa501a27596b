"""Pipelines with steps skipped by hand: the bare model, torch's own hooks, and what the case knows of calls and stacks."""

from __future__ import annotations

from zoo import CASES
from zoo._bare import Watch

import torch


class ByHand:
    """Runs a pipeline so that its denoisers skip as a mask says; knows each call's step and branches from the case.

    With ``coefficients``, up to two a step, a skip adds r_j + c1 (r_j - r_p) + c2 (r_p - r_q) where the last steps that the
    mask computes are those of the residuals at hand, else r_j.
    """

    def __init__(self, case, pipe, way, steps, mask, coefficients=None):
        self.mask, self.plan = mask, iter(case.ways[way].sequence(steps))
        self.coefficients = coefficients or ((),) * steps
        self.modules = {name: (getattr(pipe, name), CASES[cls]) for name, cls in case.denoisers.items()}
        self.residuals, self.loop, self.expert = {}, None, None
        self.did, self.forecasts = [], 0

    def __enter__(self):
        for name, (module, zoo) in self.modules.items():
            module.forward = self._forward(name, module, zoo, module.forward)
        return self

    def __exit__(self, *_):
        for module, _ in self.modules.values():
            del module.forward

    def _forward(self, name, module, zoo, original):
        def watched(args, kwargs, replace=None):
            seen = Watch(zoo, module, replace)
            with seen.watching():
                return original(*args, **kwargs), seen

        def forward(*args, **kwargs):
            loop, step, branches = next(self.plan)
            if (loop, name) != (self.loop, self.expert):  # neither another run's residual, nor another expert's
                self.residuals.clear()
                self.loop, self.expert = loop, name
            result, seen = watched(args, kwargs)
            whole = bool(seen.left)  # from the first block to the last
            if not self.mask[step] and whole and all(b in self.residuals for b in branches):
                parts = zip(*(self._forecast(b, step) for b in branches), strict=True)
                residuals = [torch.cat(list(part)) for part in parts]
                new = [x + r for x, r in zip(seen.entered, residuals, strict=True)]
                result, _ = watched(args, kwargs, new)
                self.did.append((loop, step, branches, False))
                return result
            self.did.append((loop, step, branches, True))
            if whole:
                split = [residual.chunk(len(branches)) for residual in seen.residuals]
                for branch, parts in zip(branches, zip(*split, strict=True), strict=True):
                    self.residuals[branch] = (*self.residuals.get(branch, ())[-2:], (step, parts))
            return result

        return forward

    def _forecast(self, branch, step):
        c, kept = self.coefficients[step], self.residuals[branch][::-1]
        uses = len(c) + 1
        if not c or [s for s, _ in kept[:uses]] != [s for s in range(step) if self.mask[s]][::-1][:uses]:
            return kept[0][1]
        self.forecasts += 1
        return [
            parts[0] + sum(c[o] * (parts[o] - parts[o + 1]) for o in range(len(c)))
            for parts in zip(*(parts for _, parts in kept[:uses]), strict=True)
        ]
