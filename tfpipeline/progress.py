"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere (logs, CI).

In: how many units are done. Out: nothing on stdout, ever, so that `--json` stays one document.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """`with Progress("reading", total=1000, unit="rows") as bar: bar.update(32, loss=0.31)`.

    Args:
        title: what is going on, one or two words.
        total: units to do; None where nobody knows.
        unit: name of one unit, plural.
        done: units already done before (a resumed run).
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "rows", done: int = 0) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self._first = done
        self._bar: Any = None
        self._started = time.monotonic()
        self._last_line = self._started
        self._notes: dict[str, str] = {}

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # only with the extras; without them plain lines do
                return self
            self._bar = tqdm(
                total=self.total, initial=self.done, desc=self.title, unit=f" {self.unit}", file=sys.stderr, dynamic_ncols=True, leave=True
            )
        return self

    def update(self, units: int, **notes: str) -> None:
        """`units` more are done; `notes` (name=text) stand at the end of the line."""
        self.done += units
        self._notes.update(notes)
        if self._bar is not None:
            if notes:
                self._bar.set_postfix(self._notes, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last_line != self._started:  # something was printed: close the story
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._started
        rate = (self.done - self._first) / seconds if seconds > 0 else 0.0
        of_total = f"/{self.total} ({100 * self.done / self.total:.0f} %)" if self.total else ""
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        notes = "".join(f", {name} {text}" for name, text in self._notes.items())
        print(f"{self.title}: {self.done}{of_total} {self.unit}, {rate:.1f}/s{left}{notes}", file=sys.stderr, flush=True)
