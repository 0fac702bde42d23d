"""``python -m tests.telemetry.page``: docs/metrics.md, made of the families themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from claude_daemon.telemetry.metrics import MAX_SERIES, Metrics

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"
_HEAD: Final = f"""\
# Metrics

`GET /metrics` answers in Prometheus' text format to a key whose role has the scope `metrics` (`full` has it; a role
that may read numbers and nothing else is in `etc/prometheus/prometheus.yml`). `claudectl metrics [NAME]` shows the
same, with `--json` as one document, and needs no key.

Times are seconds, sizes bytes, money US dollars. Labels hold nothing that a client could choose: routes are templates,
models those that have a name in `engine.models` (any other is `other`); keys and trust domains are no labels. No family
has more than {MAX_SERIES:,} series. Counters begin at 0 when the daemon starts.

The dashboard is `etc/grafana/claude-daemon.json`; the alerts are in [alerts.md](alerts.md). The last ones, `process_…`,
are of the daemon's own process, and are there on Linux.

| metric | kind | labels | what it tells |
|---|---|---|---|
"""


def page() -> str:
    return _HEAD + "".join(_rows())


def _rows() -> Iterator[str]:
    for family in Metrics().families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.name}` | {family.kind} | {labels} | {family.help} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
