"""The house rules, proven: layers, one home per vendor, light import, thin entry points."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llamaquant"
LAYERS = {
    "errors": 0,
    "results": 1,
    "environment": 1,
    "model": 1,
    "isolation": 2,
    "coqa": 1,
    "statistics": 1,
    "demo": 2,
    "evaluators": 3,
    "methods": 2,
    "config": 3,
    "presets": 4,
    "tracking": 2,
    "sources": 3,
    "calibration": 4,
    "checkpoint": 4,
    "experiment": 5,
    "runner": 6,
    "judging": 7,
    "study": 8,
    "doctor": 7,
    "training": 7,
    "terminal": 9,
    "cli": 10,
    "__init__": 11,
}
HOMES = {
    "mlflow": "tracking.py",
    "optuna": "study.py",
    "bitsandbytes": "methods/bnb.py",
    "gptqmodel": "methods/_gptqmodel.py",
    "auto_round": "methods/autoround.py",
    "lm_eval": "evaluators/",
}
DOCTOR_MAY = {"bitsandbytes", "gptqmodel"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, and whether the import stands at top level."""
    tree = ast.parse(path.read_text("utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "llamaquant":
                found += [(f"llamaquant.{alias.name}", id(node) in top) for alias in node.names]
            else:
                found.append((node.module, id(node) in top))
    return found


def part_of(module: str) -> str:
    return module.removeprefix("llamaquant").lstrip(".").split(".")[0] or "__init__"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_layer_imports_only_lower_layers(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in LAYERS, f"{own} has no layer: add it to LAYERS"
    if own == "__init__":
        return  # the front door: every import there is lazy or for type checkers
    for module, _ in imports(path):
        if module.split(".")[0] != "llamaquant":
            continue
        other = part_of(module)
        assert other == own or LAYERS[other] < LAYERS[own], f"{path.name} ({LAYERS[own]}) imports {other} ({LAYERS[other]})"


def test_methods_do_not_import_each_other() -> None:
    names = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__", "base"}
    shared = {name for name in names if name.startswith("_")}
    for path in (PACKAGE / "methods").glob("*.py"):
        siblings = {module.rpartition(".")[2] for module, _ in imports(path) if module.startswith("llamaquant.methods.")}
        assert not siblings & (names - shared - {path.stem}), path


def test_evaluators_are_blind_to_methods() -> None:
    for path in (PACKAGE / "evaluators").rglob("*.py"):
        assert not [module for module, _ in imports(path) if module.startswith("llamaquant.methods")], path


@pytest.mark.parametrize("vendor,home", HOMES.items())
def test_a_vendor_has_one_home(vendor: str, home: str) -> None:
    for path in sources():
        name = path.relative_to(PACKAGE).as_posix()
        if any(module.split(".")[0] == vendor for module, _ in imports(path)):
            assert name.startswith(home) or (vendor in DOCTOR_MAY and name == "doctor.py"), f"{vendor} in {name}"


def test_no_pickle_and_no_remote_code() -> None:
    for path in sources():
        text = path.read_text("utf-8")
        modules = {module.split(".")[0] for module, _ in imports(path)}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
        assert "trust_remote_code=True" not in text, path


def test_importing_llamaquant_is_light_and_silent() -> None:
    code = (
        "import os, sys, time; before = dict(os.environ); t = time.perf_counter(); import llamaquant; s = time.perf_counter() - t;"
        "heavy = {'torch', 'mlflow', 'optuna', 'transformers', 'bitsandbytes', 'gptqmodel', 'lm_eval', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; assert dict(os.environ) == before; assert s < 0.3, s"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_entry_points_are_thin_and_not_a_package() -> None:
    scripts = sorted((ROOT / "entrypoints").glob("*.py"))
    assert scripts and not (ROOT / "entrypoints" / "__init__.py").exists()
    for path in scripts:
        assert len(path.read_text("utf-8").splitlines()) < 60, path
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        assert not [module for module, _ in imports(path) if module.split(".")[0] == "entrypoints"], path


def test_every_public_name_resolves() -> None:
    import llamaquant

    for name in llamaquant.__all__:
        assert getattr(llamaquant, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llamaquant.nothing
