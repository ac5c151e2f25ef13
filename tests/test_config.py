"""Configs are frozen, checked at construction, and survive the trip through flat strings."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaquant import ConfigError, ExperimentConfig, QuantizationConfig, QuantMethod
from llamaquant.config import CalibrationConfig, parse_value
from llamaquant.presets import FULL_GRIDS, GRIDS, PRESETS, preset, quick, sweep


@pytest.mark.parametrize(
    "config", [*sweep("all", "full"), *quick(limit=3), *(preset(name) for name in PRESETS)], ids=lambda config: config.name
)
def test_every_config_survives_flat_strings_and_process_borders(config: ExperimentConfig) -> None:
    assert ExperimentConfig.from_params(config.to_params()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert all(isinstance(value, str) for value in config.to_params().values())


@given(
    limit=st.none() | st.integers(1, 10**6),
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 4096),
    threshold=st.floats(0, 1000),
    samples=st.integers(1, 1000),
)
def test_params_invert_for_any_values(limit: int | None, seed: int, batch: int, threshold: float, samples: int) -> None:
    config = ExperimentConfig(
        "x",
        QuantizationConfig("bnb_8bit", threshold=threshold),
        limit=limit,
        seed=seed,
        batch_size=batch,
        calibration=CalibrationConfig(samples=samples),
    )
    assert ExperimentConfig.from_params(config.to_params()) == config


def test_the_studys_own_examples_run_as_written() -> None:
    config = ExperimentConfig(
        name="my_experiment",
        quantization=QuantizationConfig(
            method=QuantMethod.BITSANDBYTES_4BIT, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    assert config.quantization.bnb_4bit_use_double_quant is True
    gptq = ExperimentConfig(
        name="4bit_g128", quantization=QuantizationConfig(method=QuantMethod.GPTQ, gptq_bits=4, gptq_group_size=128)
    )
    assert gptq.quantization.options.label() == "gptq-4bit-g128"


def test_the_fingerprint_sees_every_field_but_the_name() -> None:
    base = ExperimentConfig("a", QuantizationConfig("gptq"))
    assert dataclasses.replace(base, name="b").fingerprint() == base.fingerprint()
    changes = {
        "model": "m/x",
        "revision": "r",
        "weights": "dummy",
        "dataset": "coqa",
        "dataset_revision": "r",
        "turns": "last",
        "limit": 5,
        "seed": 1,
        "device": "cpu",
        "dtype": "fp16",
        "batch_size": 9,
        "max_length": 128,
        "calibration": CalibrationConfig(samples=7),
        "quantization": QuantizationConfig("gptq", bits=3),
    }
    assert set(changes) == {f.name for f in dataclasses.fields(ExperimentConfig)} - {"name"}
    prints = {dataclasses.replace(base, **{key: value}).fingerprint() for key, value in changes.items()}
    assert len(prints | {base.fingerprint()}) == len(changes) + 1


def test_frozen() -> None:
    config = ExperimentConfig("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.quantization.method = QuantMethod.GPTQ


@pytest.mark.parametrize(
    "settings,part",
    [
        ({"name": ""}, "name must be"),
        ({"name": "a b"}, "'a b'"),
        ({"name": "../x"}, "name must be"),
        ({"name": "x" * 101}, "1..100"),
        ({"limit": 0}, "limit must be"),
        ({"limit": -3}, "got -3"),
        ({"limit": 2.5}, "whole number"),
        ({"limit": True}, "got True"),
        ({"seed": -1}, "seed"),
        ({"batch_size": -1}, "batch_size"),
        ({"max_length": 5}, "max_length"),
        ({"device": "tpu"}, "'tpu'"),
        ({"device": "cuda:x"}, "cuda:N"),
        ({"dtype": "int4"}, "'int4'"),
        ({"weights": "none"}, "weights"),
        ({"turns": "none"}, "turns"),
        ({"model": ""}, "model"),
        ({"dataset": ""}, "dataset"),
        ({"quantization": None}, "QuantizationConfig"),
    ],
)
def test_bad_fields_are_refused_in_one_line(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig(**({"name": "x"} | settings))  # type: ignore[arg-type]
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method,options,part",
    [
        ("gptqq", {}, "did you mean gptq"),
        ("gptq", {"bits": 5}, "got 5"),
        ("gptq", {"gptq_bits": True}, "gptq_bits"),
        ("gptq", {"group_size": 100}, "got 100"),
        ("gptq", {"bitz": 4}, "did you mean gptq_bits"),
        ("gptq", {"sym": "yes"}, "'yes'"),
        ("gptq", {"damp_percent": 0}, "(0, 1)"),
        ("awq", {"bits": 3}, "awq_bits"),
        ("awq", {"group_size": -1}, "awq_group_size"),
        ("bnb_4bit", {"quant_type": "nf5"}, "nf4 or fp4"),
        ("bnb_4bit", {"compute_dtype": "int8"}, "'int8'"),
        ("bnb_4bit", {"use_double_quant": 1}, "true or false"),
        ("bnb_8bit", {"threshold": -1}, "0..1000"),
        ("none", {"bits": 4}, "options of this method"),
    ],
)
def test_bad_options_are_refused_in_one_line(method: str, options: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QuantizationConfig(method, **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_text_takes_the_type_of_its_default() -> None:
    assert parse_value("true", False) is True and parse_value("0", True) is False
    assert parse_value("maybe", False) == "maybe" and parse_value("4.5", 1) == "4.5"
    assert QuantizationConfig.from_text("gptq", {"bits": "3", "desc_act": "true"}) == QuantizationConfig(
        "gptq", bits=3, desc_act=True
    )


def test_presets_cover_what_the_study_names() -> None:
    wanted = {
        "fp16_baseline",
        "bnb_8bit",
        "bnb_4bit_nf4",
        "bnb_4bit_nf4_dq",
        "bnb_4bit_fp4",
        "bnb_4bit_fp4_dq",
        "gptq_4bit_g128",
        "gptq_3bit_g128",
        "awq_4bit_g128",
    }
    assert wanted <= set(PRESETS)
    assert [config.quantization.options.bits for config in quick()] == [16, 8, 4]
    assert set(GRIDS) == set(FULL_GRIDS)
    with pytest.raises(ConfigError, match="did you mean bnb_4bit_nf4"):
        preset("bnb_4bit_nf")
    with pytest.raises(ConfigError, match="got 'x'"):
        sweep("x")
    with pytest.raises(ConfigError, match="grid must be"):
        sweep("bnb", "half")


@pytest.mark.parametrize("grid", ["default", "full"])
def test_sweeps_hold_no_config_twice(grid: str) -> None:
    configs = sweep("all", grid)
    assert len({c.fingerprint() for c in configs}) == len(configs) == len({c.name for c in configs})
