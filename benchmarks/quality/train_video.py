"""Train the small video model on moving digits: ``python -m benchmarks.quality.train_video``."""

from __future__ import annotations

from benchmarks.quality import data, training
from benchmarks.quality.models import MODELS

import torch
from torch import Tensor


def main() -> None:
    images, labels = data.digits()

    def batch_of(count: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(images), (count,))
        direction = torch.randint(data.DIRECTIONS, (count,))
        return data.moving(images[pick], direction)[:, None], torch.stack([labels[pick], direction], 1)

    training.main(MODELS["video"], batch_of, batch=16)


if __name__ == "__main__":
    main()
