"""Where hidden states sit in a block's arguments and in its result, as far as a person says or names tell."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from attrs import frozen

from magpolicy import AdapterError

HIDDEN_NAMES = (
    "hidden_states", "x", "img", "image", "latent", "latents", "sample", "hidden", "visual_embed", "vis", "h",
)  # fmt: skip
SECOND_NAMES = ("audio_hidden_states", "audio", "aud", "audio_embed")
TEXT_NAMES = ("encoder_hidden_states", "txt", "text", "context", "text_embed", "encoder_hidden", "ctx")

Tokens = int | Literal["auto"]


@frozen
class Layout:
    """Which arguments of a class of blocks hold hidden states and text, and which parts of its result.

    Where ``text``, ``result`` and ``text_result`` are ``None``, the first computed call of a run shows them.
    Hidden states are ``(batch, tokens, channels)``; other shapes work where no text is concatenated to them.
    """

    __module__ = "magpolicy_torch"

    hidden: str | int
    """Argument that holds the hidden states: its name, or its position. If a call passes a pair of tensors there, the second
    one is the second stream (video and audio)."""
    text: str | int | None = None
    """Argument that holds the text, where the block returns the text too."""
    result: int | None = None
    """Index of the hidden states in a tuple result. A bare tensor result needs none."""
    text_result: int | None = None
    """Index of the text in a tuple result."""
    prefix: Tokens = "auto"
    """Text tokens concatenated before the image tokens. ``"auto"``: what is more than the stack's input, if they come
    first; where neither ``prefix`` nor ``suffix`` is a number, the first computed call tells which of the two it is."""
    suffix: Tokens = "auto"
    """Text tokens concatenated after the image tokens."""
    second_stream: str | int | None = None
    """Argument that holds a second stream of tokens, which leaves the stack and is used after it (the audio of a video). Its
    residual is kept and reused with that of the hidden states. Names such as ``audio_hidden_states`` are recognised."""
    second_result: int | None = None
    """Index of that second stream in a tuple result; found if left out."""
    batch: int = 0
    """Dimension of the hidden states in which samples follow one another."""
    swapped: bool = False
    """Frames and places change roles: the stack's input is ``(batch * frames, places, channels)``, this block's argument and
    result are ``(batch * places, frames, channels)``."""

    @classmethod
    def of(cls, forward: Callable[..., Any], name: str, *, first: bool = False) -> Layout:
        """The layout told by the argument names of ``forward``; ``first`` accepts any name for the first argument.

        Raises:
            AdapterError: no argument can be told to be the hidden states; ``name`` says whose forward it is.
        """
        parameters = parameters_of(forward)
        hidden = next((p for p in HIDDEN_NAMES if p in parameters), None)
        if hidden is None and parameters:
            needed = [n for n, p in parameters.items() if p.default is p.empty]
            if len(needed) == 1 or (first and needed):
                hidden = needed[0]
        if hidden is None:
            raise AdapterError(
                f"{name}.forward({', '.join(parameters) or '*args'}) does not tell which argument holds the hidden "
                "states; try blocks=BlockStack([...], layout=Layout(hidden=0))"
            )
        text = next((p for p in TEXT_NAMES if p in parameters), None)
        second = next((p for p in SECOND_NAMES if p in parameters and p != hidden), None)
        return cls(hidden, text, second_stream=second)

    @property
    def open(self) -> bool:
        """Nothing is said about concatenated text."""
        return self.prefix == "auto" and self.suffix == "auto"

    def front_back(self, extra: int, side: str | None) -> tuple[int, int] | None:
        """Text tokens in front and behind, of ``extra`` in all; ``side`` says where undescribed ones are.

        ``None`` when that cannot be told or does not add up.
        """
        front, back = self.prefix, self.suffix
        if front == "auto" and back == "auto":
            if extra and side is None:
                return None
            return (extra, 0) if side == "prefix" else (0, extra)
        if front == "auto":
            front = extra - int(back)
        if back == "auto":
            back = extra - front
        return (front, back) if front >= 0 and back >= 0 and front + back == extra else None


def parameters_of(forward: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of ``forward``, in order; none if they cannot be told."""
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in signature.parameters.items() if p.kind not in variable}
