"""Is what the model sees and answers now still what it was made for? Frees its caller from statistics, thresholds and the size of the journal.

    report = monitor(journal.read(folder), published.manifest, since=..., reference_texts=...)
    report.verdict.level      "ok", "warn", "alarm" or "too_few"
    report.text(), report.to_dict(), report.html()

In: journal records, streamed once, and the manifest of the version they are judged by. Out: a `Report`. Does not measure accuracy: without human
labels nobody can; see `serving.feedback`. Compares a window as a whole with the reference, and does not say when in the window a change came.

Rows are taken as independent. A thousand texts of one customer in a minute are not a thousand customers: a window should span what varies (a day).
The records' order does not matter. Where client and server both write a journal, the one with more records is judged, and never their sum.
"""

from __future__ import annotations

from serving.monitor.limits import Limits
from serving.monitor.report import Report, moment, monitor
from serving.monitor.verdict import Verdict, verdict

__all__ = ["Limits", "Report", "Verdict", "moment", "monitor", "verdict"]
