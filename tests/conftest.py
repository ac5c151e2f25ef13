"""Shared fixtures. Every test gets a tracking store and a working folder of its own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracking store and working folder of its own; nothing of the surrounding `mlflow run` leaks in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return database


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised store without runs, made once: MLflow's migrations take seconds."""
    import mlflow

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def ready_store(own_store: Path, empty_store: Path) -> Path:
    """The test's own store, initialised."""
    shutil.copy(empty_store, own_store)
    return own_store


def make_story(story_id: str = "s1", turns: int = 3, text: str = "Ann has a red hat. Bob took it.") -> dict[str, Any]:
    def column(prefix: str) -> list[dict[str, Any]]:
        return [{"turn_id": i + 1, "input_text": f"{prefix} {i + 1}"} for i in range(turns)]

    return {"id": story_id, "source": "test", "story": text, "questions": column("who is"), "answers": column("Ann"),
            "additional_answers": {str(k): column("ann") for k in range(3)}}


@pytest.fixture
def coqa_file(tmp_path: Path) -> Path:
    path = tmp_path / "coqa.json"
    path.write_text(json.dumps({"version": "1.0", "data": [make_story(f"s{i}", text=f"Ann {i} has a hat.") for i in range(6)]}))
    return path


def shared_folder() -> Path | None:
    """Where real CoQA stories lie, if this machine has them."""
    for candidate in (os.environ.get("LLAMAQUANT_SHARED"), ROOT.parent / "shared"):
        if candidate and Path(candidate, "data").is_dir():
            return Path(candidate)
    return None
