"""Train the small SD3-class model on Fashion-MNIST: ``python -m benchmarks.quality.train_clothes``."""

from __future__ import annotations

from benchmarks.quality import data, training
from benchmarks.quality.models import MODELS

import torch
from torch import Tensor


def main() -> None:
    images, labels = data.clothes()

    def batch_of(count: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(images), (count,))
        return images[pick, None].float() / 127.5 - 1, labels[pick, None]

    training.main(MODELS["clothes"], batch_of, batch=64)


if __name__ == "__main__":
    main()
