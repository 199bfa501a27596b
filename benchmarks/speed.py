"""What caching costs and what it gives, beside its peers: ``python benchmarks/speed.py``.

For a model of diffusers with random weights (speed does not depend on their values) and one pattern of computed steps, in one
process, everything measured in turn, ``--repeats`` times:

- a skip over the ideal: the same forward with empty stacks, and one addition;
- a computed step over the same step of the bare model, also where nothing is ever skipped;
- the loop's speedup over the bare model, as a share of steps / computed steps;
- bytes held between two steps, in units of one residual, and the run's peak above the weights over the bare model's.

The ideal skip is compiled as the contenders are. A peak is exact: on a CPU every allocation is followed by torch's profiler.

``--size narrow`` fits a CPU and shows overhead; the others are the sizes of published models, for a GPU (``--device cuda``).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import itertools
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import define, frozen
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

import diffusers
import magpolicy
import torch


@frozen
class Size:
    """A model, and what one evaluation is given."""

    make: Callable[[], torch.nn.Module]
    inputs: Callable[[Callable[..., torch.Tensor]], dict[str, Any]]
    steps: int
    residual: tuple[int, ...]
    streams: tuple[str, ...] = ("cond",)
    plan: str | None = None
    """A published preset whose schedule is run too."""


def _flux(layers: tuple[int, int], heads: int, width: int, joint: int, pooled: int, axes: Sequence[int], channels: int) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=channels, num_layers=layers[0], num_single_layers=layers[1], attention_head_dim=width,
        num_attention_heads=heads, joint_attention_dim=joint, pooled_projection_dim=pooled, axes_dims_rope=tuple(axes),
        guidance_embeds=joint > 1000,
    )  # fmt: skip


def _flux_inputs(tokens: int, text: int, joint: int, pooled: int, channels: int) -> Any:
    def inputs(noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
        given = dict(
            hidden_states=noise(1, tokens, channels), encoder_hidden_states=noise(1, text, joint),
            pooled_projections=noise(1, pooled), img_ids=noise(tokens, 3).zero_(), txt_ids=noise(text, 3).zero_(),
            return_dict=False,
        )  # fmt: skip
        return given | ({"guidance": noise(1).fill_(3.5)} if joint > 1000 else {})

    return inputs


def _wan(layers: int, heads: int, ffn: int) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096,
        freq_dim=256, ffn_dim=ffn, num_layers=layers, cross_attn_norm=True, rope_max_seq_len=1024,
    )  # fmt: skip


def _video_inputs(frames: int, height: int, width: int, text: int) -> Any:
    return lambda noise: dict(
        hidden_states=noise(1, 16, frames, height, width), encoder_hidden_states=noise(1, text, 4096), return_dict=False
    )


def _hunyuan(layers: tuple[int, int]) -> Any:
    return diffusers.HunyuanVideoTransformer3DModel(num_layers=layers[0], num_single_layers=layers[1], guidance_embeds=True)


def _hunyuan_inputs(noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return dict(
        hidden_states=noise(1, 16, 9, 68, 120), encoder_hidden_states=noise(1, 256, 4096), pooled_projections=noise(1, 768),
        encoder_attention_mask=noise(1, 256).fill_(1), guidance=noise(1).fill_(6000.0), return_dict=False,
    )  # fmt: skip


def _qwen_inputs(noise: Callable[..., torch.Tensor]) -> dict[str, Any]:
    return dict(
        hidden_states=noise(1, 4096, 64), encoder_hidden_states=noise(1, 128, 3584), img_shapes=[[(1, 64, 64)]],
        return_dict=False,
    )  # fmt: skip


SIZES = {
    "narrow": Size(lambda: _flux((19, 38), 2, 16, 32, 32, (4, 6, 6), 16), _flux_inputs(256, 16, 32, 32, 16), 20, (256, 32)),
    "wide": Size(
        lambda: _flux((2, 4), 8, 64, 256, 64, (16, 24, 24), 16), _flux_inputs(256, 64, 256, 64, 16), 10, (256, 512)
    ),
    "flux": Size(
        lambda: _flux((19, 38), 24, 128, 4096, 768, (16, 56, 56), 64), _flux_inputs(4096, 512, 4096, 768, 64), 28, (4096, 3072),
        plan="flux.1-dev",
    ),
    "wan-1.3b": Size(
        lambda: _wan(30, 12, 8960), _video_inputs(21, 60, 104, 512), 50, (32760, 1536), ("cond", "uncond"), "wan2.1-t2v-1.3b"
    ),
    "hunyuan": Size(lambda: _hunyuan((20, 40)), _hunyuan_inputs, 20, (18360, 3072), plan="hunyuanvideo-t2v-720p"),
    "qwen-image": Size(
        diffusers.QwenImageTransformer2DModel, _qwen_inputs, 30, (4096, 3072), ("cond", "uncond"), "qwen-image"
    ),
}  # fmt: skip


@define
class Contender:
    """A model with something attached, and how it is called."""

    name: str
    call: Callable[..., Any]
    run: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    computes: Sequence[bool] = ()
    """Which steps compute; empty: that is not known."""


def ours(model: Any, compiled: Any, mask: Sequence[bool], name: str = "magpolicy") -> Contender:
    handle = magpolicy.attach(compiled, schedule=magpolicy.Schedule.from_mask(mask))
    return Contender(name, compiled, lambda: handle.run(steps=len(mask)), mask)


def forecasting(model: Any, compiled: Any, mask: Sequence[bool], *given: float) -> Contender:
    given = given or (0.5,)
    coefficients = [() if computes else given for computes in mask]
    handle = magpolicy.attach(compiled, schedule=magpolicy.Schedule.from_mask(mask, coefficients=coefficients))
    name = f"magpolicy, forecast from {1 + len(given)}"
    return Contender(name, compiled, lambda: handle.run(steps=len(mask)), mask)


def second_order(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    return forecasting(model, compiled, mask, 0.5, 0.2)


def offloaded(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    handle = magpolicy.attach(compiled, schedule=magpolicy.Schedule.from_mask(mask), offload="cpu")
    return Contender("magpolicy, offload='cpu'", compiled, lambda: handle.run(steps=len(mask)), mask)


def never(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    handle = magpolicy.attach(compiled, ratios=[1.0] * len(mask), threshold=0.0, max_skips=0, retention=0.0)
    return Contender("magpolicy, never skipping", compiled, lambda: handle.run(steps=len(mask)), [True] * len(mask))


def mag_cache(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    config = diffusers.MagCacheConfig(
        num_inference_steps=len(mask), mag_ratios=[1.0] * len(mask), threshold=9.0, max_skip_steps=gap(mask),
        retention_ratio=(mask.index(False) + 0.01) / len(mask),
    )  # fmt: skip
    model.enable_cache(config)
    return Contender("diffusers MagCache", compiled, computes=mask)


def first_block(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    return Contender("diffusers FirstBlockCache (one step computed)", compiled, computes=[True] + [False] * (len(mask) - 1))


def taylor_seer(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    blocks = [rf"^{name}\.\d+$" for name, child in model.named_children() if isinstance(child, torch.nn.ModuleList)]
    config = diffusers.TaylorSeerCacheConfig(
        cache_interval=gap(mask) + 1, disable_cache_before_step=mask.index(False), max_order=1, cache_identifiers=blocks,
    )  # fmt: skip
    model.enable_cache(config)
    return Contender("diffusers TaylorSeer (whole blocks)", compiled)


def dbcache(model: Any, compiled: Any, mask: Sequence[bool]) -> Contender:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=1e9, max_warmup_steps=mask.index(False),
        max_continuous_cached_steps=gap(mask), num_inference_steps=len(mask),
    )  # fmt: skip
    cache_dit.enable_cache(model, cache_config=config)
    return Contender("cache-dit DBCache", compiled)


def gap(mask: Sequence[bool]) -> int:
    """The longest run of skips."""
    return max(map(len, "".join("01"[m] for m in mask).split("1")))


PEERS = (mag_cache, first_block, taylor_seer, dbcache)
COMPILED: dict[str, Callable[[Any], Any]] = {
    "eager": lambda model: model,
    "regional": lambda model: model.compile_repeated_blocks() or model,
    "full": torch.compile,
}


def pattern(steps: int) -> list[bool]:
    """A fifth of the steps, then every third: about the share that published settings compute."""
    lead = max(2, steps // 5)
    return [i < lead or (i - lead) % 3 == 2 for i in range(steps)]


class Bench:
    """One size on one device."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype) -> None:
        self.size, self.device = size, torch.device(device)
        torch.manual_seed(0)
        with self.device:
            self.model = size.make().to(dtype).eval().requires_grad_(False)
        draw = torch.Generator().manual_seed(1)
        self.inputs = size.inputs(lambda *shape: torch.randn(shape, generator=draw, dtype=dtype).to(self.device))
        self.dtype = dtype

    def timestep(self, step: int, steps: int) -> torch.Tensor:
        scale = 1 if "pooled_projections" in self.inputs or "img_shapes" in self.inputs else 1000
        return torch.full((1,), scale * (1 - step / steps), device=self.device, dtype=self.dtype)

    def loop(
        self, contender: Contender, steps: int, skipped: Contender | None = None, *, looking: bool = True
    ) -> tuple[list[float], int]:
        """Seconds of each step, and the bytes held before the last one. ``skipped`` takes the steps that compute nothing."""
        times, held, levels = [], 0, [self.timestep(step, steps) for step in range(steps)]
        with contender.run():
            for step, level in enumerate(levels):
                call = skipped.call if skipped is not None and not contender.computes[step] else contender.call
                self.wait()
                started = time.perf_counter()
                for stream in self.size.streams:
                    with context(call, stream):
                        call(timestep=level, **self.inputs)
                self.wait()
                times.append(time.perf_counter() - started)
                if looking and step == steps - 2:
                    held = live(self.device)
        return times, held

    def peak(self, contender: Contender, steps: int) -> int:
        """Most bytes that a run has at once, above what there was before it."""
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
            self.loop(contender, steps, looking=False)
            return torch.accelerator.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.loop(contender, steps, looking=False)
        pending, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
        while pending:
            event = pending.pop()
            pending.extend(event.children)
            if event.tag == _EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        return max(itertools.accumulate(size for _, size in sorted(changes)))

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def ideal(self, plain: Contender, how: str) -> Contender:
        """The forward of the plain model with empty stacks, and one addition for the residual; compiled where the model is
        compiled as a whole. Of one compiled by blocks nothing is left to compile."""
        empty = copy.copy(getattr(plain.call, "_orig_mod", plain.call))
        lists = {
            name: torch.nn.ModuleList() for name, child in empty.named_children() if isinstance(child, torch.nn.ModuleList)
        }
        empty._modules = {**empty._modules, **lists}
        residual = torch.zeros(1, *self.size.residual, device=self.device, dtype=self.dtype)
        ideal = Ideal(empty, residual)
        return Contender("ideal", torch.compile(ideal, fullgraph=True) if how == "full" else ideal)


class Ideal(torch.nn.Module):
    """What a skip cannot do without."""

    def __init__(self, rest: torch.nn.Module, residual: torch.Tensor) -> None:
        super().__init__()
        self.rest, self.residual = rest, residual

    def forward(self, **given: Any) -> Any:
        return self.rest(**given), self.residual + self.residual

    def cache_context(self, name: str) -> Any:
        return self.rest.cache_context(name)


@contextlib.contextmanager
def context(call: Any, stream: str) -> Iterator[None]:
    """Named as pipelines name it, where the model can."""
    named = getattr(call, "cache_context", None)
    with named(stream) if named is not None else contextlib.nullcontext():
        yield


def live(device: torch.device) -> int:
    """Bytes of all tensors alive on the device."""
    gc.collect()
    if device.type != "cpu":
        return torch.accelerator.memory_allocated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not the stand-ins that compilers keep.
        tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
        storages = [tensor.untyped_storage() for tensor in tensors if tensor.device == device]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="narrow")
    parser.add_argument("--device", default=(torch.accelerator.current_accelerator(True) or torch.device("cpu")).type)
    parser.add_argument("--compile", choices=COMPILED, nargs="+", default=["eager"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    bench = Bench(SIZES[given.size], given.device, torch.float32 if given.device == "cpu" else torch.bfloat16)
    named = getattr(torch.get_device_module(given.device), "get_device_name", lambda: given.device)
    where = f"{platform.machine()} CPU" if given.device == "cpu" else named()
    print(f"{given.size}, {where}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    with torch.no_grad():
        for how in given.compile:
            table(bench, how, given.repeats)


def table(bench: Bench, how: str, repeats: int) -> None:
    """One way of compiling: a row for each contender."""
    steps, mask = bench.size.steps, pattern(bench.size.steps)
    bare = bench.model
    plain = Contender("plain", COMPILED[how](copy.deepcopy(bare)))
    ideal = bench.ideal(plain, how)
    makers: list[Callable[..., Contender]] = [ours, forecasting, second_order, offloaded, never, *PEERS]
    if bench.device.type == "cpu":
        makers.remove(offloaded)  # there is nowhere to go
    if bench.size.plan:
        published = list(magpolicy.simulate(bench.size.plan, steps=steps).mask)
        makers.insert(1, lambda m, c, _: ours(m, c, published, f"magpolicy, {bench.size.plan}"))
    print(f"\n{how}: {steps} steps, {sum(mask)} computed ({steps / sum(mask):.2f}x at most)")
    print(f"{'':42} {'skip/ideal':>10} {'step/plain':>10} {'speedup':>8} {'of bound':>8} {'held':>6} {'peak':>6}  spread")
    for make in makers:
        model = copy.deepcopy(bare)
        try:
            contender = make(model, COMPILED[how](model), mask)
            base = live(bench.device)
            row(bench, contender, plain, ideal, repeats, base)
        except Exception as error:
            print(f"{make.__name__:42} {type(error).__name__}: {str(error).splitlines()[0][:70]}")
        del model
        gc.collect()


def row(bench: Bench, contender: Contender, plain: Contender, ideal: Contender, repeats: int, base: int) -> None:
    """Measured in turn with the plain model and the ideal skip."""
    steps, computes = bench.size.steps, contender.computes
    unit = torch.Size(bench.size.residual).numel() * torch.finfo(bench.dtype).bits // 8
    speedups, skips, computed, held = [], [], [], 0
    for warm in (contender, plain, ideal):
        bench.loop(warm, steps)
    for _ in range(repeats):
        ours, held = bench.loop(contender, steps)
        theirs, _ = bench.loop(plain, steps)
        speedups.append(sum(theirs) / sum(ours))
        if computes:
            # Beside computed steps, as ours are: a loop of skips alone has all of its code in the processor's caches.
            least, _ = bench.loop(Contender("", plain.call, computes=computes), steps, skipped=ideal)
            done = [t for t, c in zip(ours, computes, strict=True) if c]
            left, best = ([t for t, c in zip(times, computes, strict=True) if not c] for times in (ours, least))
            computed.append(statistics.median(done) / statistics.median(theirs))
            if left:
                skips.append(statistics.median(left) / statistics.median(best))
    peak = bench.peak(contender, steps) / bench.peak(plain, steps)
    middle = statistics.median(speedups)
    bound = f"{middle / (steps / sum(computes)):8.2f}" if computes else f"{'':8}"
    shown = [f"{statistics.median(values):10.3f}" if values else f"{'':10}" for values in (skips, computed)]
    spread = f"{min(speedups):.2f} to {max(speedups):.2f}"
    print(f"{contender.name:42} {shown[0]} {shown[1]} {middle:8.2f} {bound} {(held - base) / unit:6.1f} {peak:6.2f}  {spread}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
