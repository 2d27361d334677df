"""What the monitor tolerates. Frees the checks from taste: every number of judgement stands here, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from serving.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Thresholds. A difference counts only when it is surer than the rates *and* greater than the floors.

    Attributes:
        min_rows: answered texts, and reference rows, below which drift is not judged.
        alarm_rate: how often a whole verdict may be an alarm when nothing has changed; shared out among its tests (Bonferroni).
        warn_rate: the same for warnings.
        stability_warn: floor of the population stability index. 0.04 is two even classes at 60 : 40.
        stability_alarm: 0.08 is two even classes at 64 : 36. (By the rule of thumb 0.1 is a moderate change; a classifier dims a change of its classes.)
        jensen_shannon_warn: floor of the Jensen-Shannon divergence in bits; what 0.04 of the stability index is for small shifts.
        jensen_shannon_alarm: what 0.08 of the stability index is.
        texts_warn: floor of the domain classifier's area under the curve; 0.6 when about a fifth of the texts are of another kind.
        texts_alarm: 0.7 when about two fifths are.
        unknown_warn: more unknown word pieces than in the reference, as a share of all.
        unknown_alarm: the same.
        failures_warn: share of calls that the server's side did not answer.
        failures_alarm: the same.
        refusals_warn: share of calls refused for what the caller did.
        refusals_alarm: the same.
        slower_warn: times the latency of the earlier window.
        slower_alarm: the same.
        p50_ms: what half of the answers may take at most; None: any.
        p95_ms: what 95 of 100 answers may take at most; None: any.

    Raises:
        ConfigError: a number that cannot be meant.
    """

    min_rows: int = 100
    alarm_rate: float = 0.001
    warn_rate: float = 0.01
    stability_warn: float = 0.04
    stability_alarm: float = 0.08
    jensen_shannon_warn: float = 0.0072
    jensen_shannon_alarm: float = 0.0144
    texts_warn: float = 0.6
    texts_alarm: float = 0.7
    unknown_warn: float = 0.01
    unknown_alarm: float = 0.03
    failures_warn: float = 0.01
    failures_alarm: float = 0.05
    refusals_warn: float = 0.05
    refusals_alarm: float = 0.25
    slower_warn: float = 1.25
    slower_alarm: float = 2.0
    p50_ms: float | None = None
    p95_ms: float | None = None

    def __post_init__(self) -> None:
        wrong = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.name.endswith("_ms"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                wrong.append(f"{one.name}: expected a number above 0, received {value!r}")
        if not wrong:
            # Ten thousand draws a test are affordable, a million are not.
            wrong += [
                f"{name}: expected 0.0001 to 0.1, received {getattr(self, name)!r}"
                for name in ("alarm_rate", "warn_rate")
                if not 0.0001 <= getattr(self, name) <= 0.1
            ]
            wrong += [
                f"{name}_warn: expected at most {name}_alarm = {getattr(self, f'{name}_alarm')!r}, received {getattr(self, f'{name}_warn')!r}"
                for name in ("stability", "jensen_shannon", "texts", "unknown", "failures", "refusals", "slower")
                if getattr(self, f"{name}_warn") > getattr(self, f"{name}_alarm")
            ]
        if wrong:
            raise ConfigError(f"Limits of the monitor: {'; '.join(wrong)}. Correct them, or leave them out for the defaults.")


DEFAULT = Limits()
