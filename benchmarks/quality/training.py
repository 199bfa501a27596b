"""Flow matching on a clock: train a lab model for so many minutes and keep its averaged weights.

Flow matching (Lipman et al., arXiv 2210.02747), logit-normal noise levels as in SD3 (arXiv 2403.03206), one prompt in ten
dropped so that the model can be guided. The learning rate follows the clock, so a busy machine gives fewer steps, not an
unfinished schedule.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable

from benchmarks.quality.models import NONE, LabModel

import torch
from torch import Tensor

Batch = Callable[[int], tuple[Tensor, Tensor]]  # count -> latents, labels (B, parts)


def loss_of(model: LabModel, network: torch.nn.Module, latents: Tensor, labels: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    sigma = torch.sigmoid(torch.randn(len(latents)) + 0.5 * math.log(model.shift))
    noisy = torch.lerp(latents, noise, sigma.reshape(-1, *[1] * (latents.ndim - 1)))
    dropped = torch.where(torch.rand(len(labels), 1) < 0.1, NONE, labels)
    return torch.nn.functional.mse_loss(model.velocity(network, noisy, sigma, dropped), noise - latents)


def train(model: LabModel, batch_of: Batch, *, minutes: float, batch: int, peak_rate: float, seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = model.build()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    print(f"{model.name}: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters", flush=True)
    started, step, smooth, done = time.monotonic(), 0, math.nan, 0.0
    while done < 1:
        done = (time.monotonic() - started) / (60 * minutes)
        rate = peak_rate * min(1.0, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, network, *batch_of(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        smooth = loss.item() if math.isnan(smooth) else 0.99 * smooth + 0.01 * loss.item()
        step += 1
        if step % 100 == 0 or done >= 1:
            print(f"step {step}  {100 * done:.0f}%  loss {smooth:.4f}", flush=True)
        if step % 500 == 0 or done >= 1:
            average.save_pretrained(model.weights)


def main(model: LabModel, batch_of: Batch, *, batch: int, minutes: float = 15.0, peak_rate: float = 2e-3) -> None:
    """The command line every train_*.py shares."""
    parser = argparse.ArgumentParser(description=f"Train the lab's model {model.name!r} ({model.title}).")
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--peak-rate", type=float, default=peak_rate)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(model, batch_of, minutes=options.minutes, batch=options.batch, peak_rate=options.peak_rate)
