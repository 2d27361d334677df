"""A published version as the `model.tar.gz` of SageMaker's TensorFlow Serving container. Frees people from that layout.

In: a published version. Out: one archive, the same bytes whenever the version is the same. Refuses other file names and versions whose files are not those of
their manifest. Does not upload, and brings no `code/inference.py`: the model takes raw text, so the container's own JSON is enough.

    NAME/VERSION/saved_model.pb     the container serves each folder with a numeric name that holds one, under the name of the folder above
    NAME/VERSION/variables/  assets/  assets.extra/  manifest.json  MODEL_CARD.md

Source: https://github.com/aws/sagemaker-tensorflow-serving-container, `tfs_utils.find_models`.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

from serving.registry import Published, files_of
from tfpipeline.errors import ConfigError
from tfpipeline.runs import atomic_write

ENDING = ".tar.gz"
# Weights hardly compress: 92 % of the size is left after a second, and after eight.
COMPRESSION = 1


def check_target(target: Path) -> None:
    """Raises ConfigError for a name that SageMaker does not take, before anything long has been done."""
    if not target.name.endswith(ENDING):
        raise ConfigError(f"--sagemaker {target}: expected a name ending in {ENDING}, as SageMaker asks for, such as model{ENDING}.")


def pack(published: Published, target: Path) -> None:
    """Writes the archive, whole or not at all.

    Raises:
        ConfigError: the target is not a `.tar.gz`.
        IntegrityError: the version was changed since it was published.
        RunError: the file cannot be written.
    """
    check_target(target)
    published.verify()
    # Times, owners and modes of this machine would make each archive another one.
    with (
        atomic_write(target) as stream,
        gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files_of(published.path):
            entry = tarfile.TarInfo(f"{published.name}/{published.version}/{path.relative_to(published.path).as_posix()}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)
