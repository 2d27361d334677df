"""Who may import whom, read from the syntax trees; and light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module imports only modules above it.
ORDER = (
    "errors", "settings", "config", "presets", "recipes", "spaces", "samples", "progress", "runs", "workers", "runtime", "data", "backbone", "cleaning", "text", "batches",
    "optimizer", "techniques", "model", "evaluate", "trained", "origin", "judge", "train", "answers", "edge", "attribution", "served", "model_card", "compress", "export",
    "search", "retrain", "explain", "sagemaker", "score", "cli", "__main__",
)  # fmt: skip
SERVING_FROM = {"export": {"serving.registry", "serving.scripts"}, "sagemaker": {"serving.registry"}, "cli": {"serving"}}
SERVING_ORDER = (
    "errors", "wire", "registry", "versions", "scripts", "redact", "journal", "answers", "calls", "conversation", "channel", "client", "stores",
    "desired", "checks", "change", "push", "monitor", "feedback", "server", "operate", "cli", "__main__",
)  # fmt: skip
SERVER_ORDER = (
    "status", "flags", "configs", "servable", "batching", "metrics", "models", "handlers", "grpc_edge", "rest_json", "rest", "words", "live", "page",
    "installed", "app",
)  # fmt: skip


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module in ("tfpipeline", "serving") else {node.module}
    return found


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "tfpipeline").parts[0].removesuffix(".py")


def test_no_graph_is_traced_through_autograph() -> None:
    """It parses the sources of transformers and Keras: seconds in each process, for graphs that are plain Python over tensors."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "tfpipeline").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tf.function" and "autograph=False" not in ast.unparse(node)
    ]
    assert not wrong


def test_values_go_forward() -> None:
    wrong = []
    for path in (ROOT / "tfpipeline").rglob("*.py"):
        room = _room(path)
        if room == "__init__":
            continue
        assert room in ORDER, f"{room} has no place in the order"
        for name in _imports(path):
            parts = name.split(".")
            if (
                parts[0] == "tfpipeline"
                and len(parts) > 1
                and parts[1] != room
                and parts[1] in ORDER
                and ORDER.index(parts[1]) > ORDER.index(room)
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}, which comes after it")
            if parts[0] == "serving" and not any(name.startswith(allowed) for allowed in SERVING_FROM.get(room, ())):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_serving_never_imports_the_pipeline_and_tensorflow_in_one_place() -> None:
    for path in (ROOT / "serving").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & {"tfpipeline", "transformers", "tf_keras", "tensorflow_serving"}, path
        if path.name != "servable.py":
            assert not tops & {"tensorflow", "tensorflow_text"}, path


@pytest.mark.parametrize(("folder", "order"), [("serving", SERVING_ORDER), ("serving/server", SERVER_ORDER)])
def test_values_go_forward_in_serving(folder: str, order: tuple[str, ...]) -> None:
    package = folder.replace("/", ".")
    wrong = []
    for path in (ROOT / folder).glob("*.py"):
        room = path.stem
        if room == "__init__":
            continue
        assert room in order, f"{path} has no place in the order"
        for name in _imports(path):
            other = name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else ""
            if other in order and order.index(other) > order.index(room):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}, which comes after it")
    assert not wrong


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tfpipeline.config", {"numpy", "tensorflow", "transformers", "pyarrow"}),
        ("tfpipeline.runs", {"numpy", "tensorflow", "transformers", "pyarrow"}),
        ("tfpipeline.cli", {"numpy", "tensorflow", "transformers", "pyarrow", "serving"}),
        ("tfpipeline.compress.command", {"numpy", "tensorflow", "transformers", "pyarrow", "serving"}),
        ("tfpipeline.search.command", {"numpy", "tensorflow", "transformers", "pyarrow", "serving"}),
        ("tfpipeline.edge.command", {"numpy", "tensorflow", "transformers", "pyarrow", "serving"}),
        ("tfpipeline.edge.runner", {"tensorflow", "transformers", "pyarrow", "serving"}),
        ("tfpipeline.data", {"tensorflow", "transformers"}),
        ("tfpipeline.evaluate", {"tensorflow", "transformers", "matplotlib"}),
        ("serving.registry", {"numpy", "tensorflow", "transformers", "tfpipeline"}),
        ("serving.client", {"tensorflow", "transformers", "tfpipeline", "uvicorn"}),
        ("serving.push", {"tensorflow", "transformers", "tfpipeline", "uvicorn"}),
        ("serving.cli", {"numpy", "tensorflow", "grpc", "tfpipeline"}),
        ("serving.server.flags", {"numpy", "tensorflow", "grpc", "tfpipeline"}),
    ],
)
def test_light_stays_light(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert not forbidden & set(done.stdout.split())


def test_no_room_frightens() -> None:
    long = {
        path.name: count
        for path in [*(ROOT / "tfpipeline").rglob("*.py"), *(ROOT / "serving").rglob("*.py")]
        if (count := len(path.read_text().splitlines())) > 600
    }
    assert not long


def test_nothing_is_deserialised_blindly() -> None:
    """No pickle, no eval, no shell anywhere in the packages."""
    for path in [*(ROOT / "tfpipeline").rglob("*.py"), *(ROOT / "serving").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not _imports(path) & {"pickle", "dill", "shelve", "marshal"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in ("eval", "exec"), path
                assert not any(word.arg == "shell" for word in node.keywords), path
