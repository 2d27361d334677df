"""Raw labelled text in, a published and monitored BERT classifier out. Rooms, in the order of the flow: see docs/architecture.md."""

import os

# The one import-time side effect of the package. The TF classes of transformers and TF-MOT need Keras 2 (`tf_keras`), and TensorFlow decides
# which Keras it is at its first import. Delete when neither needs it any more (docs/decisions/0001-versions.md).
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.1.0"
