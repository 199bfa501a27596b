"""Which model something was measured on, and how near two models are to each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from attrs import asdict, field, fields, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration

KEY = "identity"
"""Where a calibration's provenance has it."""
_STORAGE = frozenset({"dtype", "torch_dtype", "quantization_config", "transformers_version", "diffusers_version"})
_HUB = re.compile(r"models--(?P<org>.+?)--(?P<name>.+)")


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"identity={_checks._short(value)} must be texts")
    return value


@frozen
class ModelIdentity:
    """What tells a model from others, as far as a host can say it.

    Attributes:
        model: name of its class.
        config: digest of its config, without paths, versions and how weights are stored (:func:`config_digest`); ``""`` if it
            is not known.
        repo: the repo id that it was loaded from, or the last part of a local folder; ``""`` if it is not known.
        weights: digest of a few values of a few parameters; ``""`` if they cannot be read, as on the meta device.
        part: the component that it is, such as ``"transformer_2"``, where a pipeline has two experts; else ``""``.

    Raises:
        ArgumentError: one of them is no text.
    """

    __module__ = "magpolicy.adapter"

    model: str = field(converter=_as_text)
    config: str = field(default="", converter=_as_text)
    repo: str = field(default="", converter=_as_text)
    weights: str = field(default="", converter=_as_text)
    part: str = field(default="", converter=_as_text)

    def to_dict(self) -> dict[str, str]:
        """JSON values, for a calibration's provenance; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, values: Any) -> ModelIdentity:
        """The identity that :meth:`to_dict` made; keys that are not known, as of a later version, are passed over.

        Raises:
            ArgumentError: it is none.
        """
        if not isinstance(values, Mapping):
            raise ArgumentError(f"identity={_checks._short(values)} must be a mapping, as ModelIdentity.to_dict makes")
        return cls(**{"model": "", **{f.name: values[f.name] for f in fields(cls) if f.name in values}})

    @classmethod
    def of(cls, calibration: Calibration) -> ModelIdentity:
        """The model that ``calibration`` was made with; of an old one what its provenance says: class and repo."""
        provenance = calibration.provenance
        try:
            return cls.from_dict(provenance[KEY])
        except (KeyError, ArgumentError):
            known = {name: provenance.get(name) for name in ("model", "repo")}
            # Other text under "model" is what somebody wrote who measured by himself.
            by_an_adapter = isinstance(provenance.get("versions"), Mapping)
            return cls(**{"model": "", **{k: v for k, v in known.items() if isinstance(v, str) and by_an_adapter}})

    def nearness(self, other: ModelIdentity) -> int:
        """How near another model is: 3 the same weights and config, 2 repo and class, 1 class and config, 0 another model.

        Two parts of one pipeline are two models, unless their weights are the same.
        """
        if not self.model or self.model != other.model:
            return 0
        same_config = bool(self.config) and self.config == other.config
        if same_config and self.weights and self.weights == other.weights:
            return 3
        if self.part and other.part and self.part != other.part:
            return 0
        if self.repo and self.repo.lower() == other.repo.lower():
            return 2
        return int(same_config)

    def digest(self, streams: Iterable[str] = ()) -> str:
        """Twelve hexadecimal digits for this model and a set of streams.

        A model of known weights is the same wherever it lies: its repo counts only if its weights are not known.
        """
        where = "" if self.weights else self.repo
        return digest([self.model, self.config, where, self.weights, self.part, *sorted(streams)])[:12]

    def name(self, streams: Iterable[str] = ()) -> str:
        """The name of a calibration of this model that nobody named: repo or class, part, and a few digits of the digest."""
        shown = [self.repo.rsplit("/", 1)[-1] or self.model or "model", self.part, self.digest(streams)[:6]]
        return "-".join(filter(None, shown))


def config_digest(config: Mapping[str, Any] | None) -> str:
    """Sixteen hexadecimal digits for a model's config, the same whatever the order of its keys; ``""`` for an empty one.

    Left out, at every depth: keys that begin with an underscore, paths, versions, and how weights are stored (``dtype``,
    ``quantization_config``), because a quantized model has the residuals of the model it was made from, nearly.
    """
    kept = _plain(dict(config or {}))
    return digest(kept) if kept else ""


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits for JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON values of a config, of which equal ones are written alike."""
    if isinstance(value, Mapping):
        pairs = ((str(key), item) for key, item in value.items())
        return {key: _plain(item) for key, item in pairs if not (key.startswith("_") or key in _STORAGE or _is_path(item))}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):  # 1.0 in a config file is 1 in another
        return repr(int(value)) if isinstance(value, int) or value.is_integer() else repr(float(value))
    return type(value).__name__  # its text may name an address


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())


def repo_and_part(source: str, parts: Iterable[str] = ()) -> tuple[str, str]:
    """The repo, and the component of it, that a model was loaded from, as its host tells: ``("org/name", "transformer_2")``.

    Args:
        source: a repo id, a local folder, or a folder in the cache of the Hugging Face Hub.
        parts: names of components, which are folders in that of a pipeline.

    Returns:
        The repo id as it is, of a local folder its last part: the rest is nobody else's business. And the component, ``""`` if
        ``source`` does not say it.
    """
    folders = [name for name in source.replace("\\", "/").split("/") if name not in ("", ".")]
    part = folders.pop() if len(folders) > 1 and folders[-1] in set(parts) else ""
    cached = next((found for name in folders if (found := _HUB.fullmatch(name))), None)
    if cached is not None:
        return f"{cached['org']}/{cached['name']}", part
    local = _is_path(source) or source.startswith((".", "~")) or len(folders) != 2
    return (folders[-1] if local and folders else "/".join(folders)), part
