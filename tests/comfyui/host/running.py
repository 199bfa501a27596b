"""Sampling with ComfyUI's own nodes, and looking at what was done."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

from attrs import define, field

import magpolicy
import torch
from host import models

# Per model, the published preset its tests go by.
PRESETS = {
    "Flux": "flux",
    "WAN21_T2V": "wan2.1_t2v_1.3B",
    "WAN21_Vace": "wan2.1_vace_1.3B",
    "QwenImage": "qwen_image",
    "Chroma": "chroma",
    "HunyuanVideo": "hunyuan_video",
    "HunyuanVideo15": "hunyuan_video1.5_40steps",
}
RULE = {"threshold": 0.24, "max_skips": 4, "retention": 0.2}


def sample(
    patcher: Any,
    name: str,
    *,
    steps: int = 8,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "simple",
    batch: int = 1,
    size: tuple[int, ...] | None = None,
    positive: Any = None,
    negative: Any = None,
    latent: Any = None,
    seed: int = 3,
    **more: Any,
) -> torch.Tensor:
    """What the node KSampler (or KSamplerAdvanced, by ``start_step`` …) makes of an empty latent of the model ``name``."""
    import nodes

    pos = models.conditioning(name, 0) if positive is None else positive
    neg = models.conditioning(name, 1) if negative is None else negative
    given = models.latent(name, batch, size) if latent is None else latent
    with quiet():
        result = nodes.common_ksampler(patcher, seed, steps, cfg, sampler, scheduler, pos, neg, given, **more)
    samples: torch.Tensor = result[0]["samples"]
    return samples


def flat(samples: Any) -> torch.Tensor:
    """A latent as one tensor, of several that were sampled together too."""
    return torch.cat([part.flatten() for part in samples.unbind()]) if getattr(samples, "is_nested", False) else samples


def custom(patcher: Any, name: str, sigmas: Any, *, sampler: str = "euler", cfg: float = 1.0, seed: int = 3) -> torch.Tensor:
    """What the node SamplerCustom makes of an empty latent."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    pos, neg = models.conditioning(name, 0), models.conditioning(name, 1)
    method = getattr(SamplerCustom, "execute", None) or SamplerCustom().sample
    with quiet():
        result = method(
            patcher,
            True,
            seed,
            cfg,
            pos,
            neg,
            comfy.samplers.sampler_object(sampler),
            torch.tensor(sigmas),
            models.latent(name),
        )
    values = getattr(result, "args", None) or getattr(result, "result", result)
    samples: torch.Tensor = values[0]["samples"]
    return samples


def version() -> tuple[int, ...]:
    """Of the ComfyUI that is imported here."""
    import comfyui_version

    return tuple(map(int, comfyui_version.__version__.split(".")[:3]))


@contextlib.contextmanager
def quiet() -> Any:
    """Without progress bars and ComfyUI's talk."""
    with contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def under(patcher: Any, source: Any, **settings: Any) -> tuple[Any, Any]:
    """A clone of ``patcher`` under a policy, and what was attached to it."""
    from magpolicy_comfyui._runs import Attachment, attach
    from magpolicy_comfyui._settings import Settings

    clone = patcher.clone()
    attachment = Attachment(Settings(source=source, **(RULE | settings)))
    attach(clone, attachment)
    return clone, attachment


@define
class Spy:
    """Outermost around each call of a model: what it was given, what it returned, and whether the first block worked."""

    sigmas: list[float] = field(factory=list)
    """Of each evaluation."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], torch.Tensor]] = field(factory=list)
    computed: list[bool] = field(factory=list)
    """Per call, whether anything inside the first block ran (inside a U-Net: anything at all)."""
    _worked: int = 0

    @classmethod
    def on(cls, patcher: Any) -> Spy:
        from comfy.patcher_extension import WrappersMP

        from magpolicy_comfyui._block_stacks import stack_of

        spy = cls()
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spy", spy._call)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy._evaluation)
        module = patcher.model.diffusion_model
        stack = stack_of(module)
        for leaf in (module if stack is None else stack.blocks[0]).modules():
            if not list(leaf.children()):
                leaf.register_forward_pre_hook(spy._work)
        return spy

    def _work(self, *_: Any) -> None:
        self._worked += 1

    def _evaluation(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.sigmas.append(float(timestep.max()))
        return executor(x, timestep, *args, **kwargs)

    def _call(self, executor: Any, x: Any, t: Any, concat: Any, cross: Any, control: Any, options: Any, **more: Any) -> Any:
        kept = options | {"wrappers": _others(options.get("wrappers", {}))}
        before = (x.clone(), t.clone(), concat, cross, _copy(control), kept)
        self._worked = 0
        result = executor(x, t, concat, cross, control, options, **more)
        self.computed.append(self._worked > 0)
        assert torch.equal(before[0], x), "the host's input was written to"
        self.calls.append((executor.class_obj, before, more, result.clone()))
        return result

    def again(self, index: int) -> torch.Tensor:
        """What the model makes of call ``index`` without a node of ours."""
        model, (x, t, concat, cross, control, options), more, _ = self.calls[index]
        with torch.no_grad():
            result: torch.Tensor = model.apply_model(x, t, concat, cross, _copy(control), dict(options), **more)
        return result


def _others(wrappers: dict[str, Any]) -> dict[str, Any]:
    """Those of other nodes, less the ones that are around the spy itself."""
    inside = {kind: keyed for kind, keyed in wrappers.items() if kind != "apply_model"}
    return {kind: {k: v for k, v in keyed.items() if k != "magpolicy"} for kind, keyed in inside.items()}


def _copy(control: Any) -> Any:
    return None if control is None else {k: list(v) for k, v in control.items()}


def check(
    patcher: Any,
    source: Any,
    expected: magpolicy.Schedule | Callable[[Spy], magpolicy.Schedule],
    act: Callable[[Any], torch.Tensor],
    **settings: Any,
) -> Any:
    """The law of every scenario: no crash, what ran is what ``simulate`` says, what was not skipped is as without a node.

    Args:
        patcher: the model without a node.
        expected: the schedule, or made of the noise levels seen.
        act: samples with the model given.

    Returns:
        the attachment of the run that skipped.
    """
    plain = act(patcher)
    never, idle = under(patcher, source, **(settings | {"threshold": 0.0, "max_skips": 0, "retention": 1.0}))
    assert torch.equal(act(never), plain), "a policy that never skips changed the result"
    assert idle.run_report is not None
    assert idle.run_report.report.skipped == 0
    node, attachment = under(patcher, source, **settings)
    spy = Spy.on(node)
    result = act(node)
    assert bool(torch.isfinite(result).all())
    assert attachment.run_report is not None
    report = attachment.run_report.report
    wanted = expected if isinstance(expected, magpolicy.Schedule) else expected(spy)
    same(report.schedule, wanted)
    assert sum(spy.computed) >= report.computed
    assert spy.computed.count(False) > 0 or not report.skipped
    for index, computed in enumerate(spy.computed):
        if computed:
            assert torch.equal(spy.again(index), spy.calls[index][3]), f"call {index} computed something else"
    untouched(patcher)
    return attachment


def same(ran: magpolicy.Schedule, expected: magpolicy.Schedule) -> None:
    """Every stream of what ran did what ``expected`` says of it."""
    for stream, mask in zip(ran.streams, ran.masks, strict=True):
        base = stream.split()[0].rstrip(",")
        wanted = expected.stream_mask(base) if base in expected.streams else expected.masks[0]
        assert _strip(mask) == _strip(wanted), stream


def _strip(mask: tuple[bool, ...]) -> str:
    return "".join("█" if computes else "·" for computes in mask)


def untouched(patcher: Any) -> None:
    """Nothing of ours is on the diffusion model."""
    for name, module in patcher.model.named_modules():
        assert not {"forward", "_call_impl", "__getstate__"} & vars(module).keys(), f"{name} has a forward of its own"
        assert not any("magpolicy" in key for kind in type(module).__mro__ for key in vars(kind)), f"{name} is of our class"


def shares(patcher: Any, sigmas: list[float]) -> list[float]:
    """Where on the model's own schedule noise levels lie: of ``s``, the t with s = shift*t / (1 + (shift-1)*t)."""
    table = patcher.get_model_object("model_sampling").sigmas.double()
    result = []
    for sigma in sigmas:
        index = int(torch.searchsorted(table, torch.tensor(sigma, dtype=torch.float64)))
        below = float(table[index - 1]) if index else 0.0
        above = float(table[min(index, len(table) - 1)])
        part = (sigma - below) / (above - below) if above > below else 0.0
        result.append(min(1.0, (index + part) / len(table)))
    return result


def sped_up(patcher: Any, **inputs: Any) -> Any:
    """The model behind a node Speed up."""
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    (node,) = NODE_CLASS_MAPPINGS["MagPolicySpeedUp"]().apply(model=patcher, **({"speedup": "balanced"} | inputs))
    return node
