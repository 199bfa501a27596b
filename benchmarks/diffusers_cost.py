"""What a skip costs, and what attaching costs where nothing is skipped, on a narrow Flux of 19 + 38 blocks.

Ratios, measured alternately in one run on one thread: ``python benchmarks/diffusers_cost.py``. The peer is
diffusers' own MagCache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings

import diffusers
import magpolicy
import torch
from diffusers import MagCacheConfig

STEPS = 40


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=19, num_single_layers=38, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
    ).eval().requires_grad_(False)  # fmt: skip
    fixed = dict(
        hidden_states=torch.randn(1, given.tokens, 16), encoder_hidden_states=torch.randn(1, 16, 32),
        pooled_projections=torch.randn(1, 32), img_ids=torch.zeros(given.tokens, 3), txt_ids=torch.zeros(16, 3),
        return_dict=False,
    )  # fmt: skip
    empty, ours, never, peer, peer_never = (copy.deepcopy(model) for _ in range(5))
    empty.transformer_blocks = empty.single_transformer_blocks = torch.nn.ModuleList()
    residual = torch.randn(1, given.tokens, 32)
    mask = [1] + [0] * (STEPS - 1)
    skipping = magpolicy.attach(ours, schedule=magpolicy.Schedule.from_mask(mask))
    attached = magpolicy.attach(never, ratios=[1.0] * STEPS, threshold=0.0, max_skips=0, retention=0.0)
    peer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, threshold=9.0, max_skip_steps=STEPS,
                                     retention_ratio=0.01))  # fmt: skip
    peer_never.enable_cache(MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, threshold=0.0, max_skip_steps=0,
                                           retention_ratio=1.0))  # fmt: skip

    def evaluate(net, timestep):
        with net.cache_context("cond"):
            return net(timestep=timestep, **fixed)[0]

    times: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(given.repeats):
            with skipping.run(steps=STEPS), attached.run(steps=STEPS):
                for step in range(STEPS):
                    t = torch.tensor([1 - step / STEPS])
                    calls = {
                        "ideal": lambda t=t: evaluate(empty, t) is None or residual + residual,
                        "ours, skip": lambda t=t: evaluate(ours, t),
                        "diffusers, skip": lambda t=t: evaluate(peer, t),
                        "bare": lambda t=t: evaluate(model, t),
                        "ours, never": lambda t=t: evaluate(never, t),
                        "diffusers, never": lambda t=t: evaluate(peer_never, t),
                    }
                    names = [*calls] if step % 2 else [*reversed(calls)]
                    for name in names:
                        spent = seconds(calls[name])
                        if step > 1:  # a run's first steps compute
                            times.setdefault(name, []).append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{given.tokens} tokens: ideal skip {1e3 * median['ideal']:.2f} ms, computed step {1e3 * median['bare']:.1f} ms")
    for name, of in (
        ("ours, skip", "ideal"),
        ("diffusers, skip", "ideal"),
        ("ours, never", "bare"),
        ("diffusers, never", "bare"),
    ):
        print(f"{name:18} / {of:6} {median[name] / median[of]:.3f}")


if __name__ == "__main__":
    main()
