"""``claudectl tasks``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlencode

import click

from claude_daemon.core.task import Kind, State
from claudectl import moment, render, tasktext
from claudectl.client import Client
from claudectl.errors import ControlError, Interrupted, Mismatch, NotFound
from claudectl.follow import ENDED, Reader, approval_path, follow, task_path
from claudectl.options import Group, Options, note
from claudectl.render import Document, Paint, plain

# A year's tasks may be a million: for the daemon, five thousand commits of some tens of milliseconds.
PURGE_SECONDS = 600.0
# The daemon gives no more at once.
MAX_PAGE = 100


@click.group(cls=Group, name="tasks")
def command() -> None:
    """Tasks: what waits, what runs, what became of the rest.

    \b
    Examples:
      claudectl tasks list --state failed
      claudectl tasks show task_01k8...
    """


@command.command("list")
@click.option("--state", multiple=True, type=click.Choice([s.value for s in State]), help="May be repeated.")
@click.option("--kind", type=click.Choice([k.value for k in Kind]), help="Without it, task.")
@click.option(
    "--limit", type=click.IntRange(1, MAX_PAGE), metavar="N", help="At most so many; with --all, so many a page."
)
@click.option("--cursor", metavar="C", help="Go on where an earlier list ended.")
@click.option("--all", "everything", is_flag=True, help="Go on until there are no more.")
@click.pass_obj
def list_(
    options: Options, state: Sequence[str], kind: str | None, limit: int | None, cursor: str | None, everything: bool
) -> None:
    """List tasks, the newest first.

    \b
    Examples:
      claudectl tasks list --state queued --state running
      claudectl tasks list --all --json | jq '.data[] | select(.error) | .id'
    """
    if limit is None and everything:
        limit = MAX_PAGE
    query = [("state", name) for name in state]
    query += [(name, str(value)) for name, value in (("kind", kind), ("limit", limit)) if value is not None]
    pages = _pages(options.client(), query, cursor, everything)
    if options.json:
        options.show_json(_joined(pages))
    else:
        _show_rows(options, pages)


def _pages(client: Client, query: list[tuple[str, str]], cursor: str | None, everything: bool) -> Iterator[Document]:
    while True:
        at = [("cursor", cursor)] if cursor is not None else []
        asked = urlencode([*query, *at], errors="surrogateescape")
        _, page = client.get(f"tasks?{asked}" if asked else "tasks")
        yield page
        following = page.get("next")
        if not everything or following is None:
            return
        if following == cursor or not isinstance(following, str):
            raise Mismatch("the daemon's list does not come to an end")
        cursor = following


def _joined(pages: Iterator[Document]) -> Document:
    """One document for all pages."""
    last: Document = {}
    data: list[object] = []
    for last in pages:
        data += _entries(last)
    return {**last, "data": data}


def _show_rows(options: Options, pages: Iterator[Document]) -> None:
    """Keeps a line of each task, not its answer."""
    now = time.time()
    following: object = None
    rows: list[list[str]] = []
    for page in pages:
        rows += [tasktext.row(task, now) for task in _entries(page)]
        following = page.get("next")
    options.show_text(lambda paint: tasktext.tasks(rows, paint))
    if following is not None:
        note(f"there are more: --all, or --cursor {plain(following)}")


def _entries(page: Document) -> list[Document]:
    data = page.get("data")
    return [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []


@command.command("show")
@click.argument("task_id", metavar="ID")
@click.pass_obj
def show(options: Options, task_id: str) -> None:
    """Show a task: what is known of it, its answer, and what an agent has changed.

    \b
    Examples:
      claudectl tasks show task_01k8...
      claudectl tasks show task_01k8... --json | jq -r .result.text
    """
    _, document = options.client().get(task_path(task_id))
    options.show(document, tasktext.task)


@command.command("follow")
@click.argument("task_id", metavar="ID")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only the events after this one.")
@click.pass_obj
def follow_(options: Options, task_id: str, after: int) -> None:
    """Print a task's answer as it comes, from its beginning.

    Ends with 0 when the task succeeded, with 1 when it did not. A daemon that restarts meanwhile is waited for.
    Ctrl-C only stops following: the task goes on.

    \b
    Examples:
      claudectl tasks follow task_01k8...
      claudectl tasks follow task_01k8... --after 16777219 --json
    """
    follow(options.client(), task_id, Reader(raw=options.json, task_id=task_id, after=after))


@command.command("cancel")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def cancel(options: Options, task_ids: Sequence[str]) -> None:
    """Cancel tasks; those that have ended stay as they are.

    \b
    Examples:
      claudectl tasks cancel task_01k8...
      claudectl tasks list --state queued --all --json | jq -r '.data[].id' | xargs claudectl tasks cancel
    """
    client = options.client()
    documents: list[Document] = []
    unknown: list[str] = []
    for task_id in task_ids:
        try:
            documents.append(client.post(task_path(task_id, "/cancel"), {}))
        except NotFound as error:
            unknown.append(f"{plain(task_id)}: {error}")
        else:
            if not options.json:
                options.show(documents[-1], _cancelled)
    if options.json:
        options.show_json({"object": "list", "data": documents, "next": None})
    if unknown:
        raise NotFound("\n".join(unknown))


def _cancelled(task: Document, paint: Paint) -> str:
    state = plain(task.get("state"))
    told = f"{plain(task.get('id'))} {paint(state)}"
    if state == State.CANCELLED:
        return told
    return f"{told} already" if state in ENDED else f"{told}, about to be cancelled"


@command.command("approvals")
@click.pass_obj
def approvals(options: Options) -> None:
    """List the tool calls that wait for somebody's word, and what each would do.

    \b
    Example:
      claudectl tasks approvals
    """
    _, document = options.client().get("approvals")
    options.show(document, lambda page, _: "\n".join(map(_waiting, _entries(page))) or "nothing waits")


def _waiting(entry: Document) -> str:
    told = tasktext.call(entry.get("tool"), entry.get("input"))
    first = f"{plain(entry.get('task'))} {plain(entry.get('approval'))}  {told}"
    return "\n".join([first, *(f"    {line}" for line in tasktext.proposal(entry.get("input"), entry.get("diff")))])


@command.command("approve")
@click.argument("task_id", metavar="ID")
@click.argument("approval", metavar="APPROVAL")
@click.option("--deny", is_flag=True, help="The call is not to be made.")
@click.option("--message", metavar="TEXT", help="What the model is told with a denial.")
@click.pass_obj
def approve(options: Options, task_id: str, approval: str, deny: bool, message: str | None) -> None:
    """Allow a tool call that waits, or deny it.

    One that was answered otherwise before is a conflict, 7. It waits no longer than its task's attempt: when that is
    over there is no such approval, 1.

    \b
    Examples:
      claudectl tasks approve task_01k8... appr_01k8...
      claudectl tasks approve task_01k8... appr_01k8... --deny --message "not on a Friday"
    """
    path = approval_path(task_id, approval)
    document = options.client().post(path, {"allow": not deny, "message": message or ""})
    options.show(document, lambda told, _: f"{plain(approval)} {'allowed' if told.get('allow') else 'denied'}")


@command.command("retry")
@click.argument("task_id", metavar="ID")
@click.pass_obj
def retry(options: Options, task_id: str) -> None:
    """Queue a failed or cancelled task again.

    Any other is a conflict, 7.

    \b
    Example:
      claudectl tasks retry task_01k8... && claudectl tasks follow task_01k8...
    """
    document = options.client().post(task_path(task_id, "/retry"), {})
    options.show(document, lambda task, paint: f"{plain(task.get('id'))} {render.state(task, paint)}")


@command.command("purge")
@click.option("--before", required=True, metavar="AGE|DATE", help="An age like 30d or 12h, or a date like 2026-01-31.")
@click.option("--yes", is_flag=True, help="Do not ask, not even on a terminal.")
@click.pass_obj
def purge(options: Options, before: str, yes: bool) -> None:
    """Delete the tasks that ended before then.

    Their answers and events go with them; their usage stays in the books.

    \b
    Examples:
      claudectl tasks purge --before 30d
      claudectl tasks purge --before 2026-01-31 --yes
    """
    try:
        until = moment.before(before, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--before") from None
    if not yes and sys.stdin.isatty():
        _confirm(f"Delete all tasks that ended before {moment.told(until)}?")
    document = options.client().post("tasks/purge", {"before": until}, patience_seconds=PURGE_SECONDS)
    options.show(document, lambda answer, _: f"{plain(answer.get('purged'))} tasks deleted")


def _confirm(question: str) -> None:
    try:
        sure = click.confirm(question, err=True)
    except click.Abort:
        raise Interrupted("interrupted: nothing was deleted") from None
    if not sure:
        raise ControlError("nothing was deleted")
