"""Calibrating a pipeline from the command line: load it, run it in full once a prompt, and merge what was measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import transformers
from attrs import evolve

import diffusers
import torch
from magpolicy import AdapterError, ArgumentError, Calibration, MagPolicyError, RunError, attach
from magpolicy_diffusers._handle import Handle
from magpolicy_torch.adapter import default_device

_MAJOR, _MINOR = map(int, diffusers.__version__.split(".")[:2])
_DTYPE = "dtype" if (_MAJOR, _MINOR) >= (0, 40) else "torch_dtype"
"""What pipelines call the data type of their weights. The new name was ignored before 0.40, where the old one began to warn."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    offload: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Any:
    """The pipeline of a repo id or path, in inference mode, where it is to run.

    Args:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default float32 on the CPU, else bfloat16.
        device: a torch device; by default the accelerator where there is one, else the CPU.
        offload: keep the parts that are not running in main memory.
        trust_remote_code: run the code of a pipeline or model that comes with its weights.
        progress: show bars while it loads and runs.

    Raises:
        ArgumentError: there is no such device.
        AdapterError: it cannot be loaded.
    """
    device = device or default_device()
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each backend has its own
        why = str(error).splitlines()[0]
        raise ArgumentError(
            f"device={device!r} cannot be used: {why}; leave it out, which takes {default_device()!r}"
        ) from error
    wanted = DTYPES[dtype or ("float32" if device == "cpu" else "bfloat16")]
    if not progress:
        diffusers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        pipe: Any = diffusers.DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            source, **{_DTYPE: wanted}, **({"trust_remote_code": True} if trust_remote_code else {})
        )
    except Exception as error:  # whatever a hub, a file or a class may say
        raise AdapterError(f"source={source} cannot be loaded by diffusers: {type(error).__name__}: {error}") from error
    pipe.set_progress_bar_config(disable=not progress)
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def calls(
    pipe: Any,
    prompts: Sequence[str],
    steps: int | None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    output_type: str = "latent",
) -> list[dict[str, Any]]:
    """The arguments of one call of ``pipe`` for each prompt (one call without, if there is none), each with its own noise.

    Args:
        steps: of a run; ``None`` is the pipeline's own number.
        options: further arguments; those that are ``None`` are left out.
        output_type: what is returned, unless ``options`` say it; by default latents, which nobody looks at.

    Raises:
        ArgumentError: the pipeline does not take one of them.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    options = dict(options or {}) | {"num_inference_steps": steps}
    given = {name: value for name, value in options.items() if value is not None}
    if prompts:
        given["prompt"] = None
    for name in given:
        if name not in takes:
            raise ArgumentError(f"{name} is no argument of {type(pipe).__name__}; it takes {', '.join(list(takes)[1:])}")
    if "output_type" in takes:
        given.setdefault("output_type", output_type)
    found = []
    for place in range(max(len(prompts), 1)):
        call = dict(given)
        if prompts:
            call["prompt"] = prompts[place]
        if "generator" in takes:
            call["generator"] = torch.Generator().manual_seed(seed + place)
        found.append(call)
    return found


def calibrate(
    pipe: Any,
    arguments: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    on_call: Callable[[int], None] = lambda place: None,
    **options: Any,
) -> Calibration:
    """Run ``pipe`` in full once for each of ``arguments``, and merge what was measured.

    Args:
        name: of the calibration; by default one that tells the model. A repo id becomes an alias of it.
        on_call: told the number of each call before it is made.
        options: further arguments of :func:`magpolicy.attach`.

    Raises:
        RunError: a call failed; the message says how far it got.
        KeyboardInterrupt: the same, by the user.
    """
    found = []
    with attach(pipe, calibrate=True, **options) as handle:
        for place, call in enumerate(arguments):
            on_call(place)
            with _said_how_far(handle, place, len(arguments)), torch.inference_mode():
                pipe(**call)
            found.append(handle.calibration)
    merged = Calibration.merge(found) if len(found) > 1 else found[0]
    repo = str(merged.provenance.get("repo", ""))
    return evolve(merged, name=name or merged.name, aliases=(repo,) if "/" in repo else ())


@contextmanager
def _said_how_far(handle: Handle, place: int, count: int) -> Iterator[None]:
    try:
        yield
    except MagPolicyError:
        raise
    except BaseException as error:
        session = handle.runs[-1].session if handle.runs else None
        where = "no step" if session is None else f"step {len({e.step for e in session.trace})} of {session.steps}"
        text = f"prompt {place + 1} of {count} got to {where}, and nothing is written"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(text) from error
        raise RunError(f"{text}: {type(error).__name__}: {error}") from error
