"""What to run, as frozen data: every rule is checked at construction, every default is written once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaquant.errors import ConfigError
from llamaquant.methods import QuantMethod, get_method, parse_method
from llamaquant.methods.base import MethodConfig

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DTYPE_NAMES = ("auto", "fp16", "bf16", "fp32")


def parse_value(text: str, like: Any) -> Any:
    """A command-line value in the type of the default `like`; the string itself where it does not fit, so that
    the owner of the option refuses it with its own rule."""
    if isinstance(like, bool):
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if isinstance(like, int | float):
        try:
            return type(like)(text)
        except ValueError:
            return text
    return text


class QuantizationConfig:
    """A method and its options: `QuantizationConfig(method=QuantMethod.GPTQ, gptq_bits=4)`.

    Options are the fields of the method's own frozen config and are read here as attributes. Equal values hash equal.
    """

    method: QuantMethod
    options: MethodConfig
    __slots__ = ("method", "options")

    def __init__(self, method: QuantMethod | str = QuantMethod.NONE, **options: Any) -> None:
        method = parse_method(method)
        config_class = get_method(method).config_class
        named = {config_class.option_name(name): value for name, value in options.items()}
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", config_class(**named))

    @classmethod
    def from_text(cls, method: str, options: Mapping[str, str]) -> QuantizationConfig:
        """The same from command-line strings."""
        config_class = get_method(parse_method(method)).config_class
        defaults = dataclasses.asdict(config_class())
        named = {config_class.option_name(name): text for name, text in options.items()}
        return cls(method, **{name: parse_value(text, defaults[name]) for name, text in named.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __getattr__(self, name: str) -> Any:
        if name in QuantizationConfig.__slots__:  # not set yet: while unpickling, say
            raise AttributeError(name)
        return getattr(self.options, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self.method), dataclasses.asdict(self.options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantizationConfig) and (self.method, self.options) == (other.method, other.options)

    def __hash__(self) -> int:
        return hash((self.method, self.options))

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in dataclasses.asdict(self.options).items())
        return f"QuantizationConfig(method={str(self.method)!r}{shown})"


def _rebuild(method: str, options: dict[str, Any]) -> QuantizationConfig:
    return QuantizationConfig(method, **options)


@dataclass(frozen=True)
class CalibrationConfig:
    """Texts for methods that look at activations; never a story that is evaluated.

    Attributes:
        source: `auto` (the training side of the evaluated data set), `demo`, `coqa-train`, or a file of texts.
        samples: number of texts.
        sequence_length: tokens per text at most.
        seed: of the draw.
    """

    source: str = "auto"
    samples: int = 128
    sequence_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _whole("calibration_samples", self.samples, 1, 100_000)
        _whole("calibration_sequence_length", self.sequence_length, 16, 131_072)
        _whole("calibration_seed", self.seed, 0, 2**32 - 1)
        if not self.source:
            raise ConfigError("calibration must be auto, demo, coqa-train or a path, got '': use auto")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number in {low}..{high}, got {value!r}: change it")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}: use {allowed[0]}")


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: a model, how it is quantized, and what it is scored on.

    Attributes:
        name: label of the run; letters, digits, dot, dash and underscore.
        quantization: the method and its options.
        model: `demo`, a hub id, or a local checkpoint folder.
        revision: commit, tag or branch of a hub model; empty is the hub's default.
        weights: `checkpoint`, or `dummy` for random weights of the model's shape (cost and speed only).
        dataset: `demo`, `coqa` (hub), or the path of an official CoQA JSON file (plain or .gz).
        dataset_revision: the same for the hub data set.
        turns: `all` scores every turn by the official rules beside lm-eval's last-turn figure; `last` only the latter.
        limit: number of stories, a seeded subset; None is all of them.
        seed: of the subset and of everything drawn at random.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `fp16`, `bf16` or `fp32`: of everything that is not quantized.
        batch_size: questions per batch of lm-eval's evaluation; 0 is 8 on a CPU and 64 on a GPU.
        max_length: prompt plus answer in tokens; 0 takes the model's context, at most 4096.
        calibration: texts for methods that need them.
    """

    name: str
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    model: str = "demo"
    revision: str = ""
    weights: str = "checkpoint"
    dataset: str = "demo"
    dataset_revision: str = ""
    turns: str = "all"
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 0
    max_length: int = 0
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name or ""):
            raise ConfigError(f"name must be 1..100 letters, digits, dots, dashes or underscores, got {self.name!r}: rename it")
        if not isinstance(self.quantization, QuantizationConfig):
            raise ConfigError(f"quantization must be a QuantizationConfig, got {self.quantization!r}: wrap it")
        for name in ("model", "dataset"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(f"{name} must be a name or a path, got {getattr(self, name)!r}: use {name}=demo")
        _one_of("weights", self.weights, ("checkpoint", "dummy"))
        _one_of("dtype", self.dtype, DTYPE_NAMES)
        _one_of("turns", self.turns, ("all", "last"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(self.device)):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}: use auto")
        if self.limit is not None:
            _whole("limit", self.limit, 1, 10_000_000)
        _whole("seed", self.seed, 0, 2**32 - 1)
        _whole("batch_size", self.batch_size, 0, 4096)
        if self.max_length:
            _whole("max_length", self.max_length, 64, 131_072)

    def to_params(self) -> dict[str, str]:
        """Flat strings for tracking, `config.`-prefixed; empty where nothing was asked for."""
        flat: dict[str, Any] = {"method": str(self.quantization.method), "bits": self.quantization.options.bits}
        flat |= dataclasses.asdict(self.quantization.options)
        flat |= {f"calibration_{key}": value for key, value in dataclasses.asdict(self.calibration).items()}
        skipped = ("quantization", "calibration")
        flat |= {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skipped}
        return {f"config.{key}": "all" if key == "limit" and value is None else str(value) for key, value in flat.items()}

    @classmethod
    def from_params(cls, params: Mapping[str, str]) -> ExperimentConfig:
        """Invert `to_params`; keys without the prefix `config.` are left alone, unknown ones are an error."""
        flat = {key.removeprefix("config."): value for key, value in params.items() if key.startswith("config.")}
        flat.pop("bits", None)
        method = flat.pop("method")
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        calibration_defaults = dataclasses.asdict(CalibrationConfig())
        own: dict[str, Any] = {}
        calibration: dict[str, Any] = {}
        options: dict[str, str] = {}
        for key, text in flat.items():
            if key == "limit":
                own[key] = None if text == "all" else parse_value(text, 0)
            elif key in defaults:
                own[key] = parse_value(text, defaults[key])
            elif key.startswith("calibration_") and key.removeprefix("calibration_") in calibration_defaults:
                short = key.removeprefix("calibration_")
                calibration[short] = parse_value(text, calibration_defaults[short])
            else:
                options[key] = text
        return cls(**own, calibration=CalibrationConfig(**calibration),
                   quantization=QuantizationConfig.from_text(method, options))

    def fingerprint(self) -> str:
        """16 hex digits of everything that can change a result; the name is not part of it."""
        params = self.to_params()
        params.pop("config.name")
        return digest(params)


def digest(value: Any) -> str:
    """16 hex digits of SHA-256 over canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
