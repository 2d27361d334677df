"""What can go wrong in `tfpipeline`, split by what the caller can do.

PipelineError                base; `exit_code` is what the command line answers
├── ConfigError              fix the config, the flag or the key                         exit 2
├── DataError                fix the file or the row                                     exit 2
├── BackboneError            give a folder, an id or a package that holds the weights    exit 2
├── RunError                 name another run, or free the folder                        exit 2
├── DependencyError          pip install the extra that is named                         exit 2
├── TrainingError            the numbers went wrong (non-finite loss): look at the batch exit 2
├── ExportError              the model was not published; the reason is in the text      exit 2
└── GateError                a quality gate said no                                      exit 3

Anything else that reaches the command line is a fault of ours: exit 1.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that a user can act on. The message is complete: what, expected, received, what to do."""

    exit_code = 2


class ConfigError(PipelineError):
    """A setting, a flag or a preset is wrong."""


class DataError(PipelineError):
    """A file or a row is wrong; the message starts with `file:line` where there is one."""


class BackboneError(PipelineError):
    """The pretrained weights are missing, of another architecture, or not what their hash says."""


class RunError(PipelineError):
    """A run directory cannot be found, read, written or resumed."""


class DependencyError(PipelineError):
    """A package of an extra is not installed; the message has the pip command."""


class TrainingError(PipelineError):
    """Training cannot go on: the message names the step and the rows."""


class ExportError(PipelineError):
    """A model was not published; nothing was left behind."""


class GateError(PipelineError):
    """A quality gate said no."""

    exit_code = 3
