"""Human labels joined to requests, and out of them the next training file. Frees training from journals, and people from looking for hard texts.

    answer -> journal -> queue -> a person -> attach -> collect -> tfpipeline retrain

In: a journal's folder. Out: feedback records in it (`attach`, `attach_file`), the texts most worth a person's time (`queue`), a file that
`tfpipeline data` reads like any other, with its provenance beside it (`collect`). Refuses labels the model has not, and ids the journal has not; never
drops a row without counting it. Only texts that the journal keeps can be labelled or collected, and as it keeps them: redacted.

| of several labels | what counts |
|---|---|
| for one record | the last one |
| for one text, over its records | the last one, or none with `conflicts="drop"`; reported either way |
| for a text of the training set, the same as there | nothing is written: the row would be a duplicate |
| for a text of the training set, another one | the new one, if the file is read before the old ones, as `tfpipeline retrain` does; reported |

Two texts are the same when they are equal after NFC, without control characters, white space squeezed: what `tfpipeline.data` calls a duplicate.
Feedback is no random sample: people correct what is wrong. A share of corrections is not an error rate.
"""

from __future__ import annotations

from serving.feedback.collecting import Collected, collect
from serving.feedback.labels import Attached, AttachedFile, Labels, attach, attach_file
from serving.feedback.queueing import Queue, queue
from serving.feedback.texts import text_digest, uncertainty

__all__ = [
    "Attached",
    "AttachedFile",
    "Collected",
    "Labels",
    "Queue",
    "attach",
    "attach_file",
    "collect",
    "queue",
    "text_digest",
    "uncertainty",
]
