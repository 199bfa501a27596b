"""Pipelines: their denoisers, and knowing when one is called."""

from __future__ import annotations

import functools
import inspect
import re
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import diffusers
from magpolicy import AdapterError
from magpolicy_diffusers._block_stacks import has_stack
from magpolicy_torch.adapter import denoises, own_class, own_name, unwrap
from torch import nn

DENOISERS = (
    "transformer", "transformer_2", "transformer_3", "unconditional_transformer", "prior", "dit", "unet", "decoder", "model",
)  # fmt: skip
_BESIDE = re.compile(r"(?i)vae|vq|autoencoder|encoder|controlnet|adapter|safety|vocoder|upsampl|project|connector|embed|guider")
"""Modules of a pipeline that do not denoise, by their names or those of their classes."""
Around = Callable[[functools.partial[Any]], Any]
"""Is given a call of the pipeline, makes it, and returns its result."""

_CALLBACKS = ("callback_on_step_end", "callback")


class _Weakly:
    """A method that does not keep its object alive. Python's ``WeakMethod`` prints an error where both go at once."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._owner, self._name = weakref.ref(cast("Any", method).__self__), cast("Any", method).__name__

    def __call__(self) -> Any:
        """The method; ``None`` if its object is gone."""
        owner = self._owner()
        return None if owner is None else getattr(owner, self._name)


_lock = threading.RLock()  # a pipeline may be collected, and counted off, while another one is counted
# Nothing here keeps a pipeline alive, nor what stands around its calls: that belongs to the pipeline's models.
_around: weakref.WeakKeyDictionary[Any, _Weakly] = weakref.WeakKeyDictionary()
_watches: weakref.WeakKeyDictionary[Any, weakref.finalize[..., Any]] = weakref.WeakKeyDictionary()


def pipeline_kinds() -> tuple[type, ...]:
    """The classes whose instances are pipelines."""
    kinds = [diffusers.DiffusionPipeline, getattr(diffusers, "ModularPipeline", None)]
    return tuple(kind for kind in kinds if isinstance(kind, type))


def is_ours(target: Any) -> bool:
    """Whether ``target`` is a pipeline of diffusers, also a modular one, or one of its models."""
    return isinstance(target, pipeline_kinds()) or model_in(target) is not None


def model_in(target: Any) -> Any:
    """The model of diffusers that ``target`` is, or that is the only one in it that denoises: ``torch.compile``, data
    parallelism, PEFT, or a module of one's own may stand around it. ``None`` if there is none."""
    module = unwrap(target)
    if isinstance(module, diffusers.ModelMixin) or not isinstance(module, nn.Module):
        return module if isinstance(module, diffusers.ModelMixin) else None
    found: list[Any] = []
    for each in module.modules():  # a parent comes before what it holds
        ours = isinstance(each, diffusers.ModelMixin) and denoises(each)
        if ours and not any(each in set(other.modules()) for other in found):
            found.append(each)
    return found[0] if len(found) == 1 else None


def compiled_around(target: Any) -> str:
    """The class of what was compiled together with the model in it, so that no call of the model can be told; empty if nothing
    was."""
    model = model_in(target)
    for each in target.modules() if unwrap(target) is not model else ():
        inner = unwrap(each)
        compiled = hasattr(each, "_orig_mod") or getattr(each, "_compiled_call_impl", None) is not None
        if compiled and inner is not model and any(part is model for part in inner.modules()):
            return own_name(inner)
    return ""


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's models that denoise, by component name: those of diffusers that have the names it gives them; in a
    pipeline of one's own also other modules by these names, or else the only one that can be meant."""
    found = {name: model_in(getattr(pipe, name, None)) for name in DENOISERS}
    named = {name: cast("nn.Module", module) for name, module in found.items() if module is not None and denoises(module)}
    return named or _own_denoisers(pipe)


def is_combined(target: Any) -> bool:
    """Whether ``target`` is a pipeline that calls others, which it holds."""
    return isinstance(target, pipeline_kinds()) and bool(stages_of(target))


def stages_of(pipe: Any) -> dict[str, Any]:
    """The pipelines that a combined one calls, by attribute name; with itself, where it has denoisers beside theirs."""
    held = {name: value for name, value in vars(pipe).items() if isinstance(value, pipeline_kinds()) and value is not pipe}
    found = {name: value for name, value in held.items() if denoisers_of(value)}
    theirs = [module for stage in found.values() for module in denoisers_of(stage).values()]
    own = [module for module in denoisers_of(pipe).values() if not any(module is other for other in theirs)]
    return {"": pipe, **found} if found and own else found


def _own_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """In a pipeline whose model is none of diffusers, or has a name of its own."""
    modules = _modules_of(pipe)
    named = {name: modules[name] for name in DENOISERS if name in modules}
    if named or len(modules) < 2:
        return named or modules
    deep = {name: module for name, module in modules.items() if has_stack(module)}
    return deep if len(deep) == 1 else {}


def _modules_of(pipe: Any) -> dict[str, nn.Module]:
    """What could denoise in a pipeline, by attribute name: no encoders and the like, and no language models."""
    found = {name: model_in(value) or unwrap(value) for name, value in vars(pipe).items() if isinstance(value, nn.Module)}
    return {
        name: module
        for name, module in found.items()
        if not (_BESIDE.search(name) or _BESIDE.search(own_name(module)) or _of_transformers(module) or _holds_models(module))
    }


def _holds_models(module: nn.Module) -> bool:
    """Whether it holds models of diffusers, of which it cannot be told which one denoises."""
    parts = () if isinstance(module, diffusers.ModelMixin) else module.modules()
    return any(isinstance(part, diffusers.ModelMixin) for part in parts)


def _of_transformers(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in own_class(module).__mro__)


def no_denoiser(pipe: Any) -> AdapterError:
    """The error for a pipeline of which it is not known what denoises."""
    modules = [name for name, value in vars(pipe).items() if isinstance(value, nn.Module)]
    which = f"of its modules {', '.join(modules)}" if modules else "in it"
    name = next(iter(_modules_of(pipe)), modules[0] if modules else "model")
    return AdapterError(
        f"target={type(pipe).__name__} has no denoiser that is known: {which} none is told to be one by its name "
        f"({', '.join(DENOISERS[:4])} ...). Attach to the one that denoises, and call the pipeline in a run: "
        f"with magpolicy.attach(pipe.{name}) as handle, handle.run(steps=28): pipe(...)"
    )


def wrapped_in(pipe: Any) -> list[str]:
    """The components that denoise and have something else than ``torch.compile`` and data parallelism around them."""
    return [name for name, module in denoisers_of(pipe).items() if unwrap(getattr(pipe, name)) is not module]


def models_of(target: Any) -> list[Any]:
    """The denoisers of a pipeline, or the model that ``target`` is."""
    return list(denoisers_of(target).values()) or [model_in(target)]


def watch(pipe: Any, around: Around, gone: Callable[[], None]) -> None:
    """Have ``around(call)`` in place of each call of ``pipe``; ``call()`` makes it. Both functions are methods, held weakly.

    Calling an object looks at its class, and the pipeline's class must stay what it is: diffusers and pickle ask for it. So the
    class gets a ``__call__`` that passes other instances on. It goes when the last instance does.

    Args:
        pipe: the pipeline.
        around: stands around its calls.
        gone: is called when the pipeline is freed while it is watched.
    """
    kind = type(pipe)
    with _lock:
        finalizer = weakref.finalize(pipe, _freed, kind, _Weakly(gone))
        finalizer.atexit = False
        _watches[pipe] = finalizer
        _around[pipe] = _Weakly(around)
        if not any(type(other) is kind and other is not pipe for other in _around):
            kind.__call__ = _watching(kind)


def unwatch(pipe: weakref.ref[Any]) -> None:
    """Undo :func:`watch`, if the pipeline is still there, and watched, be it by half."""
    watched = pipe()
    if watched is None:
        return
    with _lock:
        if watched in _watches:
            _watches[watched].detach()
        _around.pop(watched, None)
        _release(type(watched))
        _watches.pop(watched, None)


def with_callbacks(call: functools.partial[Any], inside: Callable[[], AbstractContextManager[Any]]) -> functools.partial[Any]:
    """The call of a pipeline, its callbacks run inside of ``inside()``: a model that a callback calls is no step of the run."""
    if not any(callable(call.keywords.get(name)) for name in _CALLBACKS) and len(call.args) < 2:
        return call
    names = list(inspect.signature(call.func).parameters)
    args = [_put(value, inside) if name in _CALLBACKS else value for name, value in zip(names, call.args, strict=False)]
    kwargs = {name: _put(value, inside) if name in _CALLBACKS else value for name, value in call.keywords.items()}
    return functools.partial(call.func, *args, *call.args[len(args) :], **kwargs)


def _put(callback: Any, inside: Callable[[], AbstractContextManager[Any]]) -> Any:
    if not callable(callback):
        return callback
    from diffusers import callbacks

    def called(*args: Any, **kwargs: Any) -> Any:
        with inside():
            return callback(*args, **kwargs)

    kind = type(callback)
    if not isinstance(callback, (callbacks.PipelineCallback, callbacks.MultiPipelineCallbacks)):
        return functools.update_wrapper(called, callback)
    made: Any = object.__new__(type(kind.__name__, (kind,), {"__call__": lambda _, *args, **kwargs: called(*args, **kwargs)}))
    made.__dict__ = callback.__dict__  # pipelines ask for the class, and read attributes
    return made


def is_watched(kind: type) -> bool:
    """Whether a class of pipelines has our ``__call__``, and nobody's in its place or around it."""
    return hasattr(kind.__dict__.get("__call__"), "_magpolicy_original")


def watcher(pipe: Any) -> Any:
    """Whose method stands around the calls of ``pipe``; ``None`` if none does."""
    around = _around.get(pipe, lambda: None)()
    return getattr(around, "__self__", None)


def _freed(kind: Any, gone: _Weakly) -> None:
    _release(kind)
    then = gone()
    if then is not None:
        then()


def _release(kind: Any) -> None:
    """If no instance is watched any more, the class is as it was."""
    with _lock:
        inherited, original = getattr(kind.__dict__.get("__call__"), "_magpolicy_original", (False, None))
        watched = any(type(other) is kind for other in _around)
        if watched or original is None:  # somebody has wrapped it since: theirs stays, and ours only passes calls on
            return
        if inherited:
            del kind.__call__
        else:
            kind.__call__ = original


def _watching(kind: type) -> Callable[..., Any]:
    inherited, original = "__call__" not in kind.__dict__, kind.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        around = _around.get(self, lambda: None)()
        call = functools.partial(original, self, *args, **kwargs)
        return call() if around is None else around(call)

    __call__._magpolicy_original = inherited, original  # type: ignore[attr-defined]
    return __call__
