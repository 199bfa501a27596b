"""Which model a module is: its class, config and origin, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

import torch
from magpolicy.adapter import ModelIdentity, config_digest, digest
from magpolicy_torch.blocks._unwrap import own_class, own_name, unwrap
from magpolicy_torch.ranks._find import several_processes
from torch import Tensor, nn

PARAMETERS, ADAPTERS, VALUES = 32, 8, 4
"""Parameters that are looked at, those of LoRAs among them, and values of each."""
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|base_layer|base_model|_checkpoint_wrapped_module)\.")
_LORA = ".lora_"


def identity_of(module: nn.Module, config: Any = None, repo: str = "", part: str = "") -> ModelIdentity:
    """The identity of a module, compiled, wrapped in DDP or in a ``PeftModel``, quantized or offloaded as it may be.

    Takes a few milliseconds, and waits once for each device that holds some of its weights.

    The fingerprint of the weights is taken from 4 values of each of 32 parameters, chosen by their names. It sees another
    training, a fine-tune of the whole model, another data type or quantization, and LoRAs, fused or not, with their scales. It
    does not see a change of other parameters alone. It is ``""`` if weights are on the meta device without a copy that
    accelerate's offloading knows, or where several processes work together, each of which may hold a part.

    Args:
        module: the model.
        config: a mapping, or an object with ``to_dict``; by default ``module.config``. A module that has none is told by the
            names and shapes of its parameters.
        repo: the repo id that it was loaded from, or the name of a folder.
        part: the component that it is, where a pipeline has two experts.
    """
    model = unwrap(module, peft=True)
    known = getattr(model, "config", None) if config is None else config
    figures = _or_nothing(lambda: config_digest(_as_mapping(known))) or _or_nothing(lambda: _structure(model))
    return ModelIdentity(own_name(model), figures, repo, _or_nothing(lambda: fingerprint(model)), part)


def _or_nothing(tell: Callable[[], str]) -> str:
    """What ``tell`` says; nothing where it fails: no run is to end because a model cannot be told from others."""
    try:
        return tell()
    except Exception:  # a config that holds itself, a tensor of another library that cannot be indexed
        return ""


def classes_of(*modules: nn.Module) -> tuple[str, ...]:
    """Names of the classes of modules, each one's own first, then those it is derived from."""
    kinds = (kind for module in modules for kind in own_class(unwrap(module, peft=True)).__mro__)
    return tuple(dict.fromkeys(kind.__name__ for kind in kinds if issubclass(kind, nn.Module) and kind is not nn.Module))


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits for the weights; ``""`` if they cannot be told."""
    if several_processes():
        return ""
    named = dict(model.named_parameters())
    base = _chosen({_plain_name(name): name for name in named if _LORA not in f".{name}"}, PARAMETERS)
    loras = _chosen({name: name for name in named if _LORA in f".{name}"}, ADAPTERS)
    taken: list[Tensor] = []
    for _, name in (*base, *loras):
        parameter = _where_it_is(model, name, named[name])
        if parameter is None or hasattr(parameter, "device_mesh"):  # nowhere, or only a part of it here
            return ""
        taken.extend(_values(parameter))
    names = [shown for shown, _ in (*base, *loras)]
    return digest([names, _scales(model, loras), _numbers(taken)]) if taken else ""


def _numbers(values: list[Tensor]) -> list[str]:
    """Scalars as text, fetched from each device at once."""
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value.device, []).append(place)
    found = [""] * len(values)
    for here in places.values():
        for place, number in zip(here, torch.stack([values[place] for place in here]).tolist(), strict=True):
            found[place] = repr(number)
    return found


def _chosen(names: Mapping[str, str], count: int) -> list[tuple[str, str]]:
    """A few of the parameters, as plain as they were named before they were wrapped: always the same, and of all kinds."""
    return sorted(names.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())[:count]


def _plain_name(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _where_it_is(model: nn.Module, name: str, parameter: Tensor) -> Tensor | None:
    """The parameter with its values; ``None`` if it has none, here or where accelerate's offloading keeps them."""
    if parameter.device.type != "meta":
        return parameter.detach()
    holder, _, last = name.rpartition(".")
    kept = getattr(getattr(model.get_submodule(holder), "_hf_hook", None), "weights_map", None)
    try:
        found = None if kept is None else kept[last]
    except KeyError:
        return None
    return found.detach() if isinstance(found, Tensor) and found.device.type != "meta" else None


def _values(parameter: Tensor) -> Iterator[Tensor]:
    """A few values, spread over the parameter. Views: a copy of the whole would be felt."""
    count = parameter.numel()
    for place in range(min(VALUES, count)):
        index, flat = [], (2 * place + 1) * count // (2 * VALUES) if count >= VALUES else place
        for size in reversed(parameter.shape):
            index.append(flat % size)
            flat //= size
        yield parameter[tuple(reversed(index))].to(torch.float32)


def _scales(model: nn.Module, loras: list[tuple[str, str]]) -> Any:
    """How strongly the LoRAs count, as their first layer tells."""
    if not loras:
        return None
    layer = model.get_submodule(loras[0][1].split(_LORA, 1)[0])
    return [[str(getattr(layer, name, None)) for name in ("active_adapters", "scaling", "disable_adapters", "merged_adapters")]]


def _as_mapping(config: Any) -> Mapping[str, Any] | None:
    if isinstance(config, Mapping):
        return config
    if callable(getattr(config, "to_dict", None)):
        return dict(config.to_dict())
    if attrs.has(type(config)):
        return attrs.asdict(config)
    return dict(vars(config)) if config is not None and hasattr(config, "__dict__") and not callable(config) else None


def _structure(model: nn.Module) -> str:
    """What tells a module without a config: the names and shapes of its parameters, LoRAs aside."""
    named = [(_plain_name(name), list(p.shape)) for name, p in model.named_parameters() if _LORA not in f".{name}"]
    return digest(sorted(named)) if named else ""
