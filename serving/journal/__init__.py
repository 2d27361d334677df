"""What was asked and answered, kept for later: a folder of JSON lines. Frees those who answer from disks, and those who look later from formats.

    with Journal("journal", text="redacted") as journal, Client(target, model="bank", on_response=journal.on_response) as client:
        client.predict(["the app lost my payment"])
    for record in read("journal"):
        print(record["time"], record["label"])

In: requests with their answers, as messages or arrays; ready records, such as feedback. Out: files of one JSON object a line, readable by their owner
alone (0600), and `read`. Refuses nobody: what cannot be kept is dropped and counted (`counts`, and records of kind `drops`).

| record | its fields |
|---|---|
| `request`, one a row | time, id (`<request id>:<row>`), model, version, version_label, source, code, ms, label, score, probabilities, tokens, unknown, length, text_key; text and text_pair when they are kept |
| `feedback` | time, id (the record's), label, comment, by |
| `drops` | time, source, count (since the last such record) |

Predict, Classify and Regress are kept, with label, score, probabilities and version null when they failed. Not kept: MultiInference, calls that the
caller cancelled, and what a server refuses before it has read it.

**Never in the way.** A request only puts a reference into a bounded queue. One thread, in small steps, makes records, redacts, hashes and writes. A slow
or full disk fills the queue, then records are dropped; no answer waits for it. What could not be written is tried again while there is room.

**What a crash costs.** Lines reach the operating system every `flush_s` (1 s), so `kill -9` loses at most what came since the last flush, and a last line
may be torn, which `read` skips and counts. A power failure loses what was not synced: by default (`sync="rotation"`) a file is synced when it is
rotated and when the journal is closed; `"flush"` syncs with every flush, `"never"` leaves it to the system.

**Fork and exit.** A child begins with an empty queue and files of its own; what was queued stays the parent's. At exit the journal closes itself, within
two seconds; `os._exit`, children of `multiprocessing` and deaths by signal do not come that far and lose the last flush: close it there.

**Privacy.** No text by default; with `text="redacted"` without identifiers, as far as `serving.redact` finds them. `text_key` joins equal texts without
telling them: HMAC-SHA256 under a key that stays in its file. Whole files go after `retention_days`; `delete` takes out single records before.
"""

from __future__ import annotations

from serving.journal.reading import Records, delete, read
from serving.journal.records import (
    REQUEST_ID,
    Exchange,
    Record,
    is_request_id,
    new_request_id,
    normalised,
    read_key,
    records_of,
    text_key,
    to_time,
)
from serving.journal.writing import Counts, Journal

__all__ = [
    "REQUEST_ID",
    "Counts",
    "Exchange",
    "Journal",
    "Record",
    "Records",
    "delete",
    "is_request_id",
    "new_request_id",
    "normalised",
    "read",
    "read_key",
    "records_of",
    "text_key",
    "to_time",
]
