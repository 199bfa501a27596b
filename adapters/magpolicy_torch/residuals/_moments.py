"""What a calibration run measures: inner products of residuals, summed on their device while the model runs.

Hold errors, forecast coefficients and forecast errors all follow from these (:class:`magpolicy.Calibration`), so the residuals
of the last few evaluations are all that is held, and one batched product a stream is all that is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import Factory, define

import magpolicy
import torch
from magpolicy import ArgumentError, AttachRequest, Calibration, Curve, RunError, Session, StreamMoments
from magpolicy.adapter import PRIOR_SHARE, digest
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals._arithmetic import CHUNK, whole, widest
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Reduce = Callable[[Tensor], Any]
"""Adds up a tensor of float64 or float32 sums over ranks, in place or as its result: ``torch.distributed.all_reduce``."""

WINDOW, WIDEST = 12, 100
"""Evaluations back that residuals are compared over, unless it is said otherwise: where a run's length is not known, and at
most. Errors add up over the whole run, so a plan gains from all of its inner products."""
TOKENS = 2048
"""Tokens that are looked at, unless it is said otherwise."""
_EXTRA = ("ratio", "ratio squared", "distance", "ratios", "distances")  # sums beside the inner products


@define(eq=False)
class _Stream:
    """The residuals a stream's next one is compared with, and the sums so far."""

    window: Tensor
    """(tokens, slots, channels)"""
    labels: list[int]
    """The step of each slot; -1 while it is empty."""
    shape: torch.Size
    squares: Tensor | None = None
    """Squared norm of each token of the last residual, (tokens,)."""
    steps: list[int] = Factory(list)
    rows: list[Tensor] = Factory(list)
    """Per evaluation, inner products with every slot and then what ``_EXTRA`` names, summed over tokens."""
    compared: list[list[int]] = Factory(list)
    """Per evaluation, the steps in the slots."""
    elements: float = 0.0
    """Of how many elements the rows are sums."""


@define(eq=False)
class _Pair:
    """Inner products of one stream's residuals with those of another."""

    rows: list[Tensor] = Factory(list)
    places: list[list[tuple[int, int]]] = Factory(list)
    """Per row, the steps (of the first stream, of the second) that each entry is of; -1 where there is none."""


class Moments:
    """Inner products of the residuals of a run, summed over tokens, for each stream and each pair of streams.

    >>> import torch
    >>> moments = Moments(window=2)
    >>> for step in range(3):
    ...     moments.add("single", torch.full((1, 4, 8), 1.0 + step))
    >>> moments.calibration([1.0, 0.6, 0.3]).streams["single"].ratios
    (1.0, 2.0, 1.5)

    The host does not wait for a device before :meth:`calibration`. Sums of 16-bit residuals are formed in float32 within a
    token, and in float64 across tokens (in float32 on devices other than the CPU and CUDA).

    Args:
        window: how many evaluations back inner products reach, >= 1. That many residuals per stream are held, and one more.
        tokens: how many tokens (of all samples) are used, chosen once at random; ``None`` uses all.
        offload: ``"cpu"`` holds these residuals in main memory, and computes there.
        reduce: a function that adds sums over the ranks that share the tokens (sequence parallelism).

    Raises:
        ArgumentError: ``window`` or ``tokens`` below 1.
    """

    __module__ = "magpolicy_torch"

    def __init__(
        self, *, window: int = WINDOW, tokens: int | None = TOKENS, offload: str | None = None, reduce: Reduce | None = None
    ) -> None:
        for name, value, example in (("window", window, WINDOW), ("tokens", tokens, TOKENS)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ArgumentError(f"{name}={value!r} must be a whole number >= 1; try {name}={example}")
        self.window, self.tokens, self.offload, self.reduce = window, tokens, offload, reduce
        self.problem = ""
        """Why what was measured is of no use; empty when it is."""
        self.stopped = False
        """Whether the run ended by an exception."""
        self.about: dict[str, Any] = {}
        """What the residuals themselves say of where they come from."""
        self._streams: dict[str, _Stream] = {}
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._chosen: dict[tuple[int, torch.device], Tensor] = {}
        self._looked_at: tuple[int, int] = (0, 0)

    @classmethod
    def of_run(cls, steps: int, *, window: int | None = None, **options: Any) -> Moments:
        """For a run of ``steps`` evaluations; ``window=None``: over all of it, or a hundred."""
        if window is None:
            window = min(max(steps - 1, 1), WIDEST)
        return cls(window=window, **options)

    def add(self, stream: str, residual: Tensor, channel_dim: int = -1, *, step: int | None = None) -> None:
        """Add the next residual of ``stream``.

        Args:
            residual: any shape, the same at every evaluation of the stream.
            channel_dim: its dimension of channels; all others are tokens.
            step: position in the run; by default one after the stream's last.
        """
        if self.problem:
            return
        # inference_mode(False): the window is written to in calls of any mode.
        with torch.inference_mode(False), torch.no_grad():
            residual = whole(residual.detach())
            new = self._tokens_of(residual, channel_dim)
            entry = self._streams.get(stream)
            if entry is None:
                window = new.new_zeros(len(new), self.window + 1, new.shape[1])
                entry = self._streams[stream] = _Stream(window, [-1] * (self.window + 1), residual.shape)
                entry.elements = float(new.numel())
                self.note(residual=residual)
                self.about["dtype"] = str(residual.dtype).removeprefix("torch.")
            step = (entry.steps[-1] + 1 if entry.steps else 0) if step is None else step
            if residual.shape != entry.shape:
                was, now = tuple(entry.shape), tuple(residual.shape)
                self.problem = f"the residual of {stream!r} has shape {now} at step {step}, {was} before; keep the resolution"
                return
            self._compare(stream, entry, new, step)

    def note(self, **tensors: Any) -> None:
        """Note the shape of each of ``tensors`` in the calibration's provenance."""
        self.about.update({name: list(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)})

    def _tokens_of(self, residual: Tensor, channel_dim: int) -> Tensor:
        """``(tokens, channels)``, of those that are looked at."""
        flat = residual.movedim(channel_dim, -1).flatten(0, -2) if residual.ndim > 1 else residual[None]
        total = len(flat)
        if self.tokens is not None and total > self.tokens:
            key = total, flat.device
            if key not in self._chosen:  # the same for every stream, so that streams can be compared with one another
                order = torch.randperm(total, generator=torch.Generator().manual_seed(total))
                self._chosen[key] = order[: self.tokens].sort().values.to(flat.device)
            flat = flat.index_select(0, self._chosen[key])
        self._looked_at = len(flat), total
        return flat.cpu() if self.offload == "cpu" else flat

    def _compare(self, stream: str, entry: _Stream, new: Tensor, step: int) -> None:
        slot = len(entry.steps) % len(entry.labels)
        last = (slot - 1) % len(entry.labels)
        entry.window[:, slot] = new
        entry.labels[slot] = step
        filled = min(len(entry.steps) + 1, len(entry.labels))
        dots = new.new_zeros(len(new), len(entry.labels), dtype=torch.promote_types(new.dtype, torch.float32))
        dots[:, :filled] = _inner(entry.window[:, :filled], new)
        entry.rows.append(torch.cat([_total(dots), _growth(dots[:, slot], dots[:, last], entry.squares)]))
        entry.squares = dots[:, slot].clone()
        entry.compared.append(list(entry.labels))
        entry.steps.append(step)
        for name, other in self._streams.items():
            if name != stream and other.window.shape == entry.window.shape and other.window.device == new.device:
                self._pair(stream, name, step, other.labels).append(_total(_inner(other.window, new)))

    def _pair(self, stream: str, other: str, step: int, labels: list[int]) -> list[Tensor]:
        """Where to put the products of ``stream`` at ``step`` with ``other`` at ``labels``."""
        order = list(self._streams)
        first = order.index(stream) < order.index(other)
        pair = self._pairs.setdefault((stream, other) if first else (other, stream), _Pair())
        pair.places.append([(-1, -1) if label < 0 else (step, label) if first else (label, step) for label in labels])
        return pair.rows

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations so far, per stream."""
        return {name: len(entry.steps) for name, entry in self._streams.items()}

    @property
    def whole(self) -> tuple[str, ...]:
        """The streams that were evaluated at every step of the run; not a branch that guidance left out at some steps."""
        steps = max((entry.steps for entry in self._streams.values()), key=len, default=[])
        return tuple(name for name, entry in self._streams.items() if entry.steps == steps)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the run that were evaluated."""
        return tuple(self._streams[self.whole[0]].steps) if self._streams else ()

    @property
    def nbytes(self) -> int:
        """Bytes of residuals held."""
        return sum(entry.window.untyped_storage().nbytes() for entry in self._streams.values())

    def curve(self, sigmas: Sequence[float] | None = None) -> Curve:
        """The magnitude ratios alone, with the noise level of each evaluation if known.

        Raises:
            ArgumentError: residuals that make none: another resolution midway, NaN, zero everywhere.
        """
        self._check()
        return Curve({name: self._measured(name).ratios for name in self.whole}, sigmas=sigmas)

    def calibration(self, sigmas: Sequence[float], provenance: Mapping[str, Any] | None = None) -> Calibration:
        """The calibration of the run. Under sequence parallelism every rank has to call this.

        Args:
            sigmas: noise level of each evaluation.
            provenance: how the run was made; shapes and tokens are added to it.

        Raises:
            ArgumentError: residuals that make none, or levels that do not fit.
        """
        self._check()
        steps = self.steps
        if len(sigmas) != len(steps):
            raise ArgumentError(f"sigmas has {len(sigmas)} levels for {len(steps)} evaluations; give one level an evaluation")
        streams = {name: self._measured(name) for name in self.whole}
        cross = {pair: self._crossed(pair) for pair in self._pairs if set(pair) <= set(streams)}
        looked_at, total = self._looked_at
        seen = {"samples": 1, "tokens": looked_at, "tokens_of": total, **self.about}
        missed = [name for name in self._streams if name not in streams]
        if missed:
            seen["streams_left_out"] = missed
        return Calibration(
            sigmas=tuple(map(float, sigmas)),
            streams=streams,
            cross=cross,
            provenance={**(provenance or {}), **seen},
            prior_share=PRIOR_SHARE,
        )

    def held(self) -> dict[str, Tensor]:
        """Per stream the residuals of the whole run, (N, tokens * channels); empty unless the window spans it."""
        found, steps = {}, self.steps
        for name in self.whole:
            entry = self._streams[name]
            if not set(steps) <= set(entry.labels):
                return {}
            found[name] = entry.window[:, [entry.labels.index(step) for step in steps]].movedim(1, 0).flatten(1)
        return found

    def _check(self) -> None:
        if self.problem:
            raise ArgumentError(f"calibrate=True: {self.problem}")
        if not self._streams:
            raise ArgumentError("calibrate=True: nothing was measured; run the model once while calibrating")

    def _measured(self, name: str) -> StreamMoments:
        entry = self._streams[name]
        rows, elements = self._summed(entry.rows, entry)
        slots, window = len(entry.labels), self.window
        place = {step: index for index, step in enumerate(entry.steps)}
        gram = np.full((len(rows), window + 1), np.nan)
        for i, (row, labels) in enumerate(zip(rows, entry.compared, strict=True)):
            for slot, step in enumerate(labels):
                if step >= 0:
                    gram[i, i - place[step]] = row[slot] / elements
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            step = entry.steps[int(bad.argmax())]
            raise ArgumentError(
                f"calibrate=True: the residual of {name!r} is not finite at step {step}; check the model's dtype"
            )
        ratio, squared, distance, ratios, distances = rows[1:, slots:].T
        if (ratios == 0).any():
            step = entry.steps[int((ratios == 0).argmax())]
            raise ArgumentError(f"calibrate=True: the residual of {name!r} is 0 at step {step}; check the model")
        spread = np.sqrt(np.maximum(squared / ratios - (ratio / ratios) ** 2, 0))
        return StreamMoments(
            gram=gram,
            ratios=(1.0, *(ratio / ratios).tolist()),
            spread=(0.0, *spread.tolist()),
            cosine=(0.0, *(distance / np.maximum(distances, 1)).tolist()),
        )

    def _crossed(self, names: tuple[str, str]) -> NDArray[np.float64]:
        pair, window = self._pairs[names], self.window
        rows, elements = self._summed(pair.rows, self._streams[names[0]])
        place = {step: index for index, step in enumerate(self.steps)}
        found = np.full((len(place), 2 * window + 1), np.nan)
        for row, places in zip(rows, pair.places, strict=True):
            for value, (first, second) in zip(row, places, strict=True):
                if first >= 0 and abs(place[second] - place[first]) <= window:
                    found[place[first], window + place[second] - place[first]] = value / elements
        return found

    def sum_over(self, group: RankGroup) -> None:
        """At the end of a run: add what the other ranks measured, so that all have the same; every rank calls this.

        Ranks that share the tokens have measured a part each, and the sums are those of the whole. Where each has all tokens,
        or a sample of its own, what follows is the mean over ranks: elements are added as products are.
        """
        if self.reduce is not None:
            return
        tables: list[_Stream | _Pair] = [*self._streams.values(), *self._pairs.values()]
        about = [(name, entry.steps, len(entry.labels)) for name, entry in self._streams.items()]
        if not group.ends_alike(digest([self.problem, about, [[*pair, len(e.rows)] for pair, e in self._pairs.items()]])):
            self.problem = self.problem or "ranks did not measure the same steps and streams; run the model on each alike"
            return
        if not tables or self.problem:
            return
        count = torch.tensor([entry.elements for entry in self._streams.values()])
        stacked = [torch.stack(entry.rows) for entry in tables]
        sums = group.sum(torch.cat([part.flatten().to(stacked[0].device) for part in (*stacked, count.to(stacked[0].dtype))]))
        parts = torch.split(sums, [part.numel() for part in (*stacked, count)])
        for entry, part, table in zip(tables, parts, stacked, strict=False):
            entry.rows = list(part.view_as(table))
        for entry, elements in zip(self._streams.values(), parts[-1].tolist(), strict=True):
            entry.elements = elements
        self.about["ranks"] = group.size

    def _summed(self, rows: list[Tensor], entry: _Stream) -> tuple[NDArray[np.float64], float]:
        """The rows, and the number of elements they are sums over; of all ranks."""
        table = torch.stack(rows)
        sums = torch.cat([table.flatten(), table.new_tensor([entry.elements])])
        if self.reduce is not None:
            reduced = self.reduce(sums)
            sums = reduced if isinstance(reduced, Tensor) else sums
        values: NDArray[np.float64] = sums.cpu().numpy().astype(np.float64)
        return values[:-1].reshape(table.shape), float(values[-1])


def moments_for(request: AttachRequest, steps: int = 1) -> Moments | None:
    """What measures a run of so many steps asked for by ``request``; ``None`` if it is no calibration."""
    if not request.calibrate:
        return None
    return Moments.of_run(steps, window=request.window, tokens=request.tokens, offload=request.offload, reduce=request.reduce)


def measured(what: str, moments: Moments | None, unsupported: bool) -> Moments:
    """What a run has measured.

    Raises:
        RunError: nothing, and why; the message begins with ``what``.
    """
    if moments is None:
        raise RunError(f"{what}: this handle does not calibrate; attach with calibrate=True")
    if unsupported or not (moments.steps or moments.problem):
        raise RunError(f"{what}: the blocks could not be followed; describe them with blocks=BlockStack(..., layout=...)")
    return moments


def calibrated(moments: Moments, session: Session, provenance: Mapping[str, Any]) -> Calibration:
    """The calibration of a run that is through.

    Raises:
        RunError: it was stopped, or is not over.
        ArgumentError: its residuals make no calibration.
    """
    steps, count = moments.steps, session.steps
    done = steps[-1] + 1 if steps else 0
    short = [name for name, number in moments.evaluations.items() if number < len(steps)] if moments.stopped else []
    if not moments.problem and (done < count or short):
        which = f" ({', '.join(short)}: fewer)" if short else ""
        raise RunError(
            f"calibration: the run got to step {done} of {count}{which} and was not finished; let a run go to its end, or "
            "give the number of steps it really has"
        )
    known = _levels(moments, session)
    if known is None:
        return moments.calibration([1 - step / count for step in steps], {**provenance, "sigmas": "assumed"})
    return moments.calibration(known, provenance)


def curve_of(moments: Moments, session: Session) -> Curve:
    """The curve of a run, with its noise levels where they are known and fall.

    Raises:
        ArgumentError: its residuals make none.
    """
    known = _levels(moments, session)
    falling = known is not None and all(after < before for before, after in itertools.pairwise(known))
    return moments.curve(known if falling else None)


def _levels(moments: Moments, session: Session) -> list[float] | None:
    """The noise level of each evaluation, if all are known."""
    if not moments.steps:
        return None
    levels = {entry.step: entry.sigma for entry in session.trace if entry.stream == moments.whole[0]}
    known = [sigma for step in moments.steps if (sigma := levels.get(step)) is not None]
    return known if len(known) == len(moments.steps) else None


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of magpolicy, torch and ``packages``, for a calibration's provenance."""
    return {"magpolicy": magpolicy.__version__} | {name: metadata.version(name) for name in ("torch", *packages)}


def _inner(window: Tensor, new: Tensor) -> Tensor:
    """Inner products over channels in float32: ``(tokens, slots, channels)`` by ``(tokens, channels)``."""
    if window.dtype in (torch.float32, torch.float64):
        return torch.matmul(window, new.unsqueeze(-1)).squeeze(-1)
    size = max(1, CHUNK // (window.shape[1] * window.shape[2]))
    parts = [(window[i : i + size], new[i : i + size]) for i in range(0, len(new), size)]
    return torch.cat([torch.matmul(w.float(), n.float().unsqueeze(-1)).squeeze(-1) for w, n in parts])


def _total(dots: Tensor) -> Tensor:
    """Sum over tokens."""
    return dots.sum(0, dtype=widest(dots.device))


def _growth(squares: Tensor, products: Tensor, before: Tensor | None) -> Tensor:
    """What ``_EXTRA`` names: sums of each token's growth, of its square and of 1 - cosine, and the tokens that count."""
    if before is None:
        return torch.zeros(len(_EXTRA), dtype=widest(squares.device), device=squares.device)
    moved = before > 0  # a token whose residual vanishes says nothing of the growth of the others
    ratio = torch.where(moved, squares / before, torch.zeros_like(before)).sqrt()
    both = moved & (squares > 0)
    cosine = torch.where(both, products / (squares.sqrt() * before.sqrt()), torch.ones_like(before))
    return _total(torch.stack([ratio, ratio.square(), 1 - cosine, moved.to(ratio.dtype), both.to(ratio.dtype)], dim=1))
