"""Names to models and stories, and one line for everything that is wrong with them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import errors as hub_errors

from llamaquant import demo, sources
from llamaquant.calibration import calibration_texts
from llamaquant.config import CalibrationConfig
from llamaquant.errors import BackendError, DataError
from llamaquant.model import ModelShape


def test_the_demo_resolves() -> None:
    source = sources.resolve_model("demo", "", "checkpoint")
    assert source.folder == demo.MODEL_PATH and len(source.identity) == 16 and not source.dummy
    assert 0.8e6 <= source.shape.parameters <= 2.5e6
    stories = sources.resolve_stories("demo", "", 5, 0)
    assert len(stories) == 5 and sources.question_count(stories) >= 30
    assert stories == sources.resolve_stories("demo", "", 9, 0)[:5] != sources.resolve_stories("demo", "", 5, 1)


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo.MODEL_PATH, copy)
    assert sources.resolve_model(str(copy), "", "checkpoint").identity == sources.resolve_model("demo", "", "checkpoint").identity
    changed = tmp_path / "changed"
    shutil.copytree(copy, changed)
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    assert sources.resolve_model(str(changed), "", "checkpoint").identity != sources.resolve_model("demo", "", "checkpoint").identity


def test_the_shape_counts_what_the_file_holds() -> None:
    from llamaquant.evaluators.footprint import count_parameters

    shape = ModelShape.from_folder(demo.MODEL_PATH)
    assert count_parameters(demo.MODEL_PATH) == (shape.parameters, shape.block_parameters)


def test_llama_1b_by_hand(tmp_path: Path) -> None:
    """Sizes of the 1 B shape against the published count of 1.236 B parameters (tied embedding 262.7 M)."""
    (tmp_path / "config.json").write_text(json.dumps({
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072}))
    shape = ModelShape.from_folder(tmp_path)
    assert shape.block_parameters == 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
    assert shape.parameters == 1_235_814_400
    source = sources.resolve_model(str(tmp_path), "", "dummy")
    assert source.dummy and source.shape == shape


@pytest.mark.parametrize("damage,part", [
    ("no_config", "config.json"), ("config_not_json", "must be JSON"), ("no_heads", "num_attention_heads"), ("list", "Llama-like"),
    ("no_weights", "safetensors"), ("missing_shard", "without model-00002"), ("broken_index", "weight_map"),
])
def test_damaged_folders(damage: str, part: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo.MODEL_PATH, folder)
    config = json.loads((folder / "config.json").read_text())
    if damage == "no_config":
        (folder / "config.json").unlink()
    elif damage == "config_not_json":
        (folder / "config.json").write_text("{")
    elif damage == "no_heads":
        del config["num_attention_heads"]
        (folder / "config.json").write_text(json.dumps(config))
    elif damage == "list":
        (folder / "config.json").write_text("[]")
    elif damage == "no_weights":
        (folder / "model.safetensors").unlink()
    elif damage == "missing_shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        sources.resolve_model(str(folder), "", "checkpoint")
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("error,kind,part", [
    ("GatedRepoError", BackendError, "accept its licence"), ("RepositoryNotFoundError", DataError, "check the name"),
    ("RevisionNotFoundError", DataError, "check revision"), ("LocalEntryNotFoundError", BackendError, "hub in reach"),
    ("ConnectionError", BackendError, "hub in reach"),
])
def test_hub_refusals(error: str, kind: type[Exception], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> str:
        kind_of_error = ConnectionError if error == "ConnectionError" else getattr(hub_errors, error)
        raise kind_of_error.__new__(kind_of_error, "line one\nline two")  # its __init__ wants a whole HTTP response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(kind) as caught:
        sources.resolve_model("meta-llama/Llama-3.2-1B", "", "checkpoint")
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_only_safe_files_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, object] = {}

    def fetch(repository: str, **kwargs: object) -> str:
        seen.update(kwargs, repository=repository)
        return str(demo.MODEL_PATH)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    sources.resolve_model("meta-llama/Llama-3.2-1B", "abc123", "checkpoint")
    assert seen["repository"] == "meta-llama/Llama-3.2-1B" and seen["revision"] == "abc123"
    assert not [p for p in seen["allow_patterns"] if p.endswith((".bin", ".py", ".pt", "*"))]  # type: ignore[attr-defined]


def test_calibration_is_seeded_and_never_evaluated(tmp_path: Path) -> None:
    evaluated = sources.resolve_stories("demo", "", 40, 0)
    config = CalibrationConfig(samples=8)
    texts = calibration_texts(config, "demo", evaluated)
    assert len(texts) == 8 == len(set(texts)) and texts == calibration_texts(config, "demo", evaluated)
    assert texts != calibration_texts(CalibrationConfig(samples=8, seed=1), "demo", evaluated)
    leak = tmp_path / "leak.json"
    stories = demo.demo_stories("calibration", 8) + [evaluated[3] | {"id": "renamed"}]
    leak.write_text(json.dumps({"data": stories}))
    with pytest.raises(DataError, match="'renamed' in both"):
        calibration_texts(CalibrationConfig(source=str(leak), samples=4), "demo", evaluated)
    plain = tmp_path / "texts.txt"
    plain.write_text("\n\n".join(f"paragraph {i}" for i in range(9)))
    assert len(calibration_texts(CalibrationConfig(source=str(plain), samples=9), "demo", evaluated)) == 9
    plain.write_text(plain.read_text() + "\n\n" + evaluated[0]["story"].upper())
    with pytest.raises(DataError, match="never|must not see"):
        calibration_texts(CalibrationConfig(source=str(plain), samples=4), "demo", evaluated)
    with pytest.raises(DataError, match="lower calibration_samples"):
        calibration_texts(CalibrationConfig(source=str(leak), samples=50), "demo", [])
    with pytest.raises(DataError, match="readable file"):
        calibration_texts(CalibrationConfig(source=os.fspath(tmp_path / "none.txt")), "demo", [])
