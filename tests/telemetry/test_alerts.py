"""Alert rules, dashboard and scrape configuration of ``etc/``: what they name is there, and each alert fires.

promtool is Debian's, of its package ``prometheus``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from claude_daemon.meters import Meters
from claude_daemon.telemetry.metrics import Family, Metrics
from tests.debian import program

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "etc" / "prometheus"
RULES: Final = PROMETHEUS / "claude-daemon.rules.yml"
DASHBOARD: Final = ROOT / "etc" / "grafana" / "claude-daemon.json"
RUNBOOKS: Final = ROOT / "docs" / "alerts.md"

_NAME: Final = re.compile(r"\b(?:claude_daemon|process)_[a-z_]+\b")
_SELECTED: Final = re.compile(r"\b((?:claude_daemon|process)_[a-z_]+)\{([^}]*)\}")
_MATCHER: Final = re.compile(r'([a-z_]+)(=~?|!=)"([^"]*)"')
_BY: Final = re.compile(r"\bby \(([^)]*)\)")
_FROM_PROMETHEUS: Final = frozenset({"instance", "job", "le"})
"""Labels that a scrape adds, and a histogram's own."""

H: Final = 60
FIRES: Final[Mapping[str, tuple[int, Mapping[str, str]]]] = {
    "ClaudeDaemonDown": (2, {'up{job="claude-daemon"}': "0x10"}),
    "ClaudeDaemonNotReady": (3, {"claude_daemon_ready": "0x10"}),
    "ClaudeDaemonErrors": (
        30,
        {
            'claude_daemon_http_requests_total{route="/v1/messages",method="POST",status="2xx"}': "0+90x40",
            'claude_daemon_http_requests_total{route="/v1/messages",method="POST",status="5xx"}': "0+10x40",
        },
    ),
    "ClaudeDaemonCredentialRefused": (
        5,
        {'claude_daemon_upstream_calls_total{lane="cli",outcome="upstream_credential_refused"}': "0 0 1x10"},
    ),
    "ClaudeDaemonRateLimited": (
        30,
        {
            'claude_daemon_upstream_calls_total{lane="direct",outcome="ok"}': "0+90x40",
            'claude_daemon_upstream_calls_total{lane="direct",outcome="upstream_rate_limited"}': "0+10x40",
        },
    ),
    "ClaudeDaemonCostRate": (
        2 * H,
        {
            'claude_daemon_charged_usd_total{model="claude-sonnet-5-5"}': "0+0.05x200",
            'claude_daemon_budget_limit_usd{span="day"}': "10x200",
        },
    ),
    "ClaudeDaemonBudgetNearlySpent": (1, {'claude_daemon_budget_left_ratio{purse="all",span="day"}': "0.05x10"}),
    "ClaudeDaemonQueueOld": (
        20,
        {"claude_daemon_queue_oldest_seconds": "700x30", "claude_daemon_queue_paused": "0x30"},
    ),
    "ClaudeDaemonQueuePaused": (61, {"claude_daemon_queue_paused": "1x100"}),
    "ClaudeDaemonCrashLoop": (
        10,
        {"claude_daemon_worker_crashes_total": "0+1x20", "claude_daemon_worker_start_failures_total": "0x20"},
    ),
    "ClaudeDaemonSandboxMissing": (2, {"claude_daemon_sandbox_missing": "1x10"}),
    "ClaudeDaemonWorkerAtControlSocket": (
        5,
        {'claude_daemon_control_refused_total{reason="from_worker"}': "0 0 1x10"},
    ),
    "ClaudeDaemonControlRefused": (5, {'claude_daemon_control_refused_total{reason="forbidden"}': "0 0 1x10"}),
    "ClaudeDaemonKeysRefused": (5, {'claude_daemon_refused_total{code="unauthenticated"}': "0+60x20"}),
    "ClaudeDaemonAnchorLate": (8, {"claude_daemon_audit_anchor_age_seconds": "0+60x20"}),
    "ClaudeDaemonAuditStrange": (1, {"claude_daemon_audit_strange": "1x10"}),
    "ClaudeDaemonAuditUnwritten": (5, {'claude_daemon_events_total{event="audit.unwritten"}': "0 0 1x10"}),
    "ClaudeDaemonStoreDown": (2, {"claude_daemon_store_up": "0x10"}),
    "ClaudeDaemonDiskLow": (
        10,
        {"claude_daemon_disk_free_bytes": "4e9x20", "claude_daemon_disk_size_bytes": "100e9x20"},
    ),
    "ClaudeDaemonFdsLow": (
        10,
        {'process_open_fds{job="claude-daemon"}': "900x20", 'process_max_fds{job="claude-daemon"}': "1024x20"},
    ),
    "ClaudeDaemonEventLoopLag": (3, {"claude_daemon_event_loop_lag_seconds": "1.5x10"}),
    "ClaudeDaemonLogLinesLost": (5, {"claude_daemon_log_lines_lost_total": "0 0 7x10"}),
    "ClaudeDaemonStrays": (5, {"claude_daemon_strays_ended_total": "0 0 1x10"}),
    "ClaudeDaemonApprovalsWaiting": (3, {"claude_daemon_approvals_waiting": "1x10"}),
    "ClaudeDaemonWebhookBacklog": (
        15,
        {"claude_daemon_webhooks_waiting": "120x20", "claude_daemon_webhook_oldest_due_seconds": "0x20"},
    ),
    "ClaudeDaemonWebhooksGivenUp": (5, {'claude_daemon_webhook_attempts_total{outcome="given_up"}': "0 0 1x10"}),
    "ClaudeDaemonBackupOld": (70, {"claude_daemon_backup_timestamp_seconds": "-200000x100"}),
    "ClaudeDaemonKeyExpiring": (1, {"claude_daemon_key_next_expiry_timestamp_seconds": "500000x10"}),
}
"""Of each alert: minutes, and the series that make it fire by then. promtool's clock begins at the epoch."""

QUIET: Final[Mapping[str, str]] = {
    'up{job="claude-daemon"}': "1",
    "claude_daemon_ready": "1",
    'claude_daemon_http_requests_total{route="/v1/messages",method="POST",status="2xx"}': "0+90",
    'claude_daemon_http_requests_total{route="/v1/messages",method="POST",status="5xx"}': "0+1",
    'claude_daemon_upstream_calls_total{lane="direct",outcome="ok"}': "0+90",
    'claude_daemon_upstream_calls_total{lane="direct",outcome="upstream_rate_limited"}': "0+1",
    'claude_daemon_upstream_calls_total{lane="cli",outcome="upstream_credential_refused"}': "3",
    'claude_daemon_tasks_ended_total{kind="chat",lane="text",code="upstream_credential_refused"}': "3",
    'claude_daemon_charged_usd_total{model="claude-sonnet-5-5"}': "0+5",
    'claude_daemon_budget_limit_usd{span="day"}': "+Inf",
    'claude_daemon_budget_left_ratio{purse="all",span="day"}': "1",
    "claude_daemon_queue_oldest_seconds": "20",
    "claude_daemon_queue_paused": "0",
    "claude_daemon_worker_crashes_total": "9",
    "claude_daemon_worker_start_failures_total": "9",
    "claude_daemon_sandbox_missing": "0",
    'claude_daemon_control_refused_total{reason="from_worker"}': "1",
    'claude_daemon_control_refused_total{reason="forbidden"}': "1",
    'claude_daemon_refused_total{code="unauthenticated"}': "0+1",
    "claude_daemon_audit_anchor_age_seconds": "60",
    "claude_daemon_audit_strange": "0",
    'claude_daemon_events_total{event="audit.unwritten"}': "1",
    "claude_daemon_store_up": "1",
    "claude_daemon_disk_free_bytes": "50e9",
    "claude_daemon_disk_size_bytes": "100e9",
    'process_open_fds{job="claude-daemon"}': "100",
    'process_max_fds{job="claude-daemon"}': "1024",
    "claude_daemon_event_loop_lag_seconds": "0.01",
    "claude_daemon_log_lines_lost_total": "5",
    "claude_daemon_strays_ended_total": "2",
    "claude_daemon_approvals_waiting": "0",
    "claude_daemon_webhooks_waiting": "3",
    "claude_daemon_webhook_oldest_due_seconds": "2",
    'claude_daemon_webhook_attempts_total{outcome="given_up"}': "1",
    "claude_daemon_backup_timestamp_seconds": "0+60",
    "claude_daemon_key_next_expiry_timestamp_seconds": "+Inf",
}
"""A daemon that has had its troubles, and has none now."""


def rules() -> list[Mapping[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return cast(list[Mapping[str, Any]], group["rules"])


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of each query of the dashboard, as Prometheus would be asked."""
    for panel in orjson.loads(DASHBOARD.read_bytes())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            yield panel["title"], expression


EXPRESSIONS: Final = [(rule["alert"], rule["expr"]) for rule in rules()] + list(panels())
FAMILIES: Final[Mapping[str, Family]] = {
    name: family
    for family in Metrics().families
    for name in (
        [f"{family.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if family.kind == "histogram"
        else [family.name]
    )
}
"""By the names of their series; that a real scrape has just these families is a test of ``e2e/test_metrics.py``."""


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_metric_and_label_that_is_asked_for_is_there(where: str, expression: str) -> None:
    names = set(_NAME.findall(expression))
    if where == "ClaudeDaemonDown":
        assert names == set()
        return
    assert names and names <= set(FAMILIES), names - set(FAMILIES)
    known = {label for name in names for label in FAMILIES[name].labels} | _FROM_PROMETHEUS
    for name, matchers in _SELECTED.findall(expression):
        for label, _, _ in _MATCHER.findall(matchers):
            assert label in {*FAMILIES[name].labels, *_FROM_PROMETHEUS}, (name, label)
    for grouped in _BY.findall(expression):
        assert {label.strip() for label in grouped.split(",")} <= known, grouped


async def test_every_series_whose_rise_alerts_is_there_from_the_start() -> None:
    meters = Meters(Metrics(), monotonic=lambda: 0.0)
    text = (await meters.metrics.text()).decode()
    there = [(s.name, s.labels) for family in text_string_to_metric_families(text) for s in family.samples]
    for rule in rules():
        for name, matchers in _SELECTED.findall(rule["expr"]):
            wanted = {label: value for label, how, value in _MATCHER.findall(matchers) if how == "="}
            wanted = {label: value for label, value in wanted.items() if label not in _FROM_PROMETHEUS}
            if name.endswith("_total") and name.startswith("claude_daemon"):
                assert any(found == name and wanted.items() <= labels.items() for found, labels in there), (
                    name,
                    wanted,
                )


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    alerts = {rule["alert"] for rule in rules()}
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert alerts == set(FIRES)


def test_panels_stand_beside_each_other() -> None:
    """None over another, and none beyond the screen's 24 columns."""
    taken: set[tuple[int, int]] = set()
    found = orjson.loads(DASHBOARD.read_bytes())["panels"]
    for panel in found:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in _rows(place)}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in found}) == len(found)


def _rows(place: Mapping[str, int]) -> range:
    return range(place["y"], place["y"] + place["h"])


# promtool


def promtool(*args: object) -> None:
    """Raises AssertionError with its words."""
    command = [str(program("promtool", "prometheus")), *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_promtool_takes_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(panels())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", file)


def test_each_alert_fires_and_none_does_without_its_cause(tmp_path: Path) -> None:
    annotations = {rule["alert"]: rule["annotations"] for rule in rules()}
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    tests = [_firing(name, *FIRES[name], severity[name], annotations[name]) for name in FIRES]
    quiet = {"interval": "1m", "input_series": [], "alert_rule_test": []}
    for series, told in QUIET.items():
        shape = f"{told}x{3 * H}" if "+" in told[1:] else " ".join([told] * (3 * H))
        quiet["input_series"].append({"series": _of_an_instance(series), "values": shape})  # type: ignore[attr-defined]
    for name in FIRES:
        quiet["alert_rule_test"] += [  # type: ignore[operator]
            {"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": []} for minutes in (20, 2 * H)
        ]
    file = tmp_path / "test.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [*tests, quiet]}
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", file)


def _firing(
    name: str, minutes: int, series: Mapping[str, str], severity: str, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """What is expected has the labels of the series, where the rule does not add them up."""
    (expression,) = [rule["expr"] for rule in rules() if rule["alert"] == name]
    kept: dict[str, str] = {}
    if "sum by (instance)" not in expression:
        first = next(iter(series))
        kept = dict(_labels(first))
    expected = {"exp_labels": {"instance": "one", "severity": severity, **kept}, "exp_annotations": annotations}
    return {
        "interval": "1m",
        "input_series": [{"series": _of_an_instance(s), "values": values} for s, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": [expected]}],
    }


def _labels(series: str) -> Iterator[tuple[str, str]]:
    for label, _, value in _MATCHER.findall(series):
        yield label, value


def _of_an_instance(series: str) -> str:
    name, _, labels = series.partition("{")
    own = labels.removesuffix("}")
    return f'{name}{{instance="one"{"," + own if own else ""}}}'
