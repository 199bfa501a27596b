"""What diffusers asks of an accelerator, where there is only a CPU. Nothing else of it is replaced.

Each is a context manager, for the body of a case::

    with standins.two_devices(), standins.native_ring():
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ring_degree=2))
        ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def two_devices() -> Iterator[None]:
    """``enable_parallelism`` divides by the number of accelerators, which is 0 on a CPU: here it is 2, one for each rank."""
    with mock.patch.object(torch.accelerator, "device_count", return_value=2):
        yield


@contextlib.contextmanager
def native_ring() -> Iterator[None]:
    """Ring attention needs the log-sum-exp of each part, which the CPU's ``scaled_dot_product_attention`` does not return: here
    the native forward op computes attention by its definition where it is asked for it, in the dtype given."""
    from diffusers.models import attention_dispatch

    original = attention_dispatch._native_attention_forward_op

    def forward_op(
        ctx: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *rest: Any, **more: Any
    ):
        is_causal, scale, enable_gqa, return_lse = (*rest, *(None, None, False, False)[len(rest) :])
        if not return_lse:
            return original(ctx, query, key, value, attn_mask, dropout_p, *rest, **more)
        assert (attn_mask, bool(dropout_p), bool(is_causal), enable_gqa) == (None, False, False, False)
        scores = torch.einsum("bqhd,bkhd->bqhk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return torch.einsum("bqhk,bkhd->bqhd", scores.softmax(-1), value), scores.logsumexp(-1)

    with mock.patch.object(attention_dispatch, "_native_attention_forward_op", forward_op):
        yield


@contextlib.contextmanager
def uneven_gather() -> Iterator[None]:
    """Tokens that the ranks do not divide make shares of unequal length, which NCCL can gather and gloo cannot: here each share
    is filled up to the longest one, and cut after the gather."""
    from diffusers.hooks import context_parallel

    def gather(tensor: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
        lengths = context_parallel.gather_size_by_comm(tensor.shape[dim], group)
        short = max(lengths) - tensor.shape[dim]
        filled = torch.cat([tensor, tensor.narrow(dim, 0, 1).repeat_interleave(short, dim)], dim) if short else tensor
        parts = [torch.empty_like(filled) for _ in lengths]
        torch.distributed.all_gather(parts, filled.contiguous(), group=group)
        return torch.cat([part.narrow(dim, 0, length) for part, length in zip(parts, lengths, strict=True)], dim)

    with mock.patch.object(context_parallel, "_all_gather_anything", gather):
        yield


@contextlib.contextmanager
def tensor_parallel_on_cpu() -> Iterator[None]:
    """diffusers lists the kinds of devices that its tensor parallelism was tried on; here the CPU is one more of them."""
    from diffusers.hooks import tensor_parallel

    with (
        two_devices(),
        mock.patch.object(tensor_parallel, "_SUPPORTED_TP_DEVICES", (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")),
    ):
        yield
