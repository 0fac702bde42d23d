"""Sessions, as their owners see them: begun, continued, forked, listed, deleted; and swept when nobody uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.key import Key
from claude_daemon.core.role import SESSIONS, Role, refuses
from claude_daemon.core.session import SessionTurn, last_said, system_of
from claude_daemon.ports import AuditRecord, Clock, Ids, SessionPage, SessionRecord, Store, StoreUnavailable
from claude_daemon.service.dispatch import Dispatcher

NO_SESSION: Final = Failure(code=Code.NOT_FOUND, message="There is no such session.", param="session")
_SWEPT_AT_ONCE: Final = 100
"""Each is a directory tree to delete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionWish:
    """``id`` None: a new one. ``fork``: a new one that begins as that one is then."""

    id: str | None = None
    fork: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a task is as a turn of its session. ``made``: the session that it begins."""

    turn: SessionTurn
    agent: AgentSpec
    request: Mapping[str, Any]
    made: SessionRecord | None = None


class Homes(Protocol):
    """Where sessions live: their transcripts, and processes that are kept for them."""

    def warm(self, session_id: str) -> bool:
        """Whether a process is kept for it."""

    async def remove(self, session_id: str) -> None:
        """Ends its process and deletes what it has left. Nothing else of it is under way."""


class SessionDesk:
    """``uuids`` makes the names that Claude Code keeps conversations and messages under."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        homes: Homes,
        *,
        now: Clock,
        ids: Ids,
        uuids: Callable[[], str],
        role_of: Callable[[Key, int | None], Role],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._homes = homes
        self._now = now
        self._ids = ids
        self._uuids = uuids
        self._role_of = role_of
        self._going: set[str] = set()  # are being deleted

    # in

    async def join(
        self, key: Key, wish: SessionWish, agent: AgentSpec | None, request: Mapping[str, Any], peer_uid: int | None
    ) -> Joined:
        """Raises Refusal: for a session that is not this key's, whoever asks; for what its first turn has fixed."""
        self._check_scope(key, peer_uid)
        wished = agent or AgentSpec()
        if wish.id is None:
            made = self._made(key, wished, system_of(request.get("system")))
            turn = SessionTurn(id=made.id, transcript=made.transcript, message=self._uuids())
            return Joined(turn=turn, agent=wished, request=request, made=made)
        known = await self._own(key, wish.id)
        _check_fixed(known, agent, request)
        agent = replace(wished, cwd=known.cwd, add_dirs=known.add_dirs, append_system=known.append_system)
        request = _with_system(request, known.system)
        if not wish.fork:
            return Joined(turn=self._turn(known), agent=agent, request=request)
        made = self._made(key, agent, known.system)
        turn = SessionTurn(
            id=made.id,
            transcript=made.transcript,
            message=self._uuids(),
            begun=known.begun,
            source=known.id,
            source_transcript=known.transcript,
        )
        return Joined(turn=turn, agent=agent, request=request, made=made)

    async def join_chat(self, key: Key, session_id: str) -> SessionRecord:
        """The session that a chat continues. Raises Refusal."""
        self._check_scope(key, None)
        return await self._own(key, session_id)

    def chat(self, known: SessionRecord, request: Mapping[str, Any]) -> Joined:
        """A chat as a turn: what was said last, without tools. No await between this and its start. Raises Refusal."""
        if known.id in self._going:
            raise Refusal(NO_SESSION)
        _check_fixed(known, None, request)
        said = last_said(request["messages"])
        if not said:
            why = "In a session the last message is the user's."
            raise Refusal.because(Code.INVALID_REQUEST, why, param="messages")
        agent = AgentSpec(cwd=known.cwd, add_dirs=known.add_dirs, append_system=known.append_system)
        request = {**_with_system(request, known.system), "messages": said}
        return Joined(turn=self._turn(known), agent=agent, request=request)

    def _check_scope(self, key: Key, peer_uid: int | None) -> None:
        why = refuses(self._role_of(key, peer_uid), scopes=[SESSIONS])
        if why is not None:
            raise Refusal.because(Code.FORBIDDEN, why)

    def _made(self, key: Key, agent: AgentSpec, system: str) -> SessionRecord:
        at = self._now()
        return SessionRecord(
            id=self._ids("sess"),
            key_id=key.id,
            trust_domain=key.trust_domain,
            transcript=self._uuids(),
            created_at=at,
            used_at=at,
            cwd=agent.cwd,
            add_dirs=agent.add_dirs,
            system=system,
            append_system=agent.append_system,
        )

    def _turn(self, known: SessionRecord) -> SessionTurn:
        return SessionTurn(id=known.id, transcript=known.transcript, message=self._uuids(), begun=known.begun)

    async def _own(self, key: Key, session_id: str) -> SessionRecord:
        known = await self._read(session_id)
        if known is None or (known.key_id, known.trust_domain) != (key.id, key.trust_domain) or known.id in self._going:
            raise Refusal(NO_SESSION)
        return known

    async def _read(self, session_id: str) -> SessionRecord | None:
        try:
            return await self._store.session(session_id)
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "The store cannot be read now.") from error

    # out; ``owner`` is whose sessions are seen, None for all

    async def get(self, owner: str | None, session_id: str) -> SessionRecord:
        """Raises Refusal for one that is not there, or somebody else's: which of the two is nobody's business."""
        known = await self._read(session_id)
        if known is None or owner not in (None, known.key_id):
            raise Refusal(NO_SESSION)
        return known

    async def list(self, owner: str | None, limit: int, cursor: str | None) -> SessionPage:
        """Newest first. Raises Refusal."""
        try:
            return await self._store.sessions(owner, limit, cursor)
        except ValueError as error:
            raise Refusal.because(Code.INVALID_REQUEST, str(error), param="cursor") from error
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "The store cannot be read now.") from error

    def state(self, session_id: str) -> str:
        """``running``: a turn waits or runs; ``warm``: a process is kept for the next one; else ``idle``."""
        if session_id in self._dispatcher.turns:
            return "running"
        return "warm" if self._homes.warm(session_id) else "idle"

    async def delete(self, owner: str | None, session_id: str, audit: AuditRecord) -> None:
        """Raises Refusal, while a turn of it waits or runs too."""
        await self.get(owner, session_id)
        if not await self._dispatcher.finish(self._delete(session_id, audit)):
            why = "A turn of this session, or a fork of it, waits or runs."
            raise Refusal.because(Code.CONFLICT, why)

    async def _delete(self, session_id: str, audit: AuditRecord | None) -> bool:
        if session_id in self._dispatcher.turns or session_id in self._going:
            return False
        self._going.add(session_id)  # a chat leaves no trace in the store that would keep its session there
        try:
            gone = await self._store.delete_session(session_id, audit)
            if gone is not False:
                await self._homes.remove(session_id)
            return gone is not False
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "Nothing can be stored now; it stays.") from error
        finally:
            self._going.discard(session_id)

    async def sweep(self, before: float) -> int:
        """Deletes those that nobody has used since then; how many. Raises StoreUnavailable."""
        swept = 0
        while unused := await self._store.unused_sessions(before, _SWEPT_AT_ONCE):
            gone = [await self._expire(session_id) for session_id in unused]
            swept += sum(gone)
            if not all(gone):  # a turn waits there: the next sweep finds it again
                break
        return swept

    async def _expire(self, session_id: str) -> bool:
        audit = AuditRecord(at=self._now(), act="session.expired", details={"session": session_id})
        try:
            return await self._delete(session_id, audit)
        except Refusal as refusal:
            raise StoreUnavailable(refusal.failure.message) from refusal


def _check_fixed(known: SessionRecord, agent: AgentSpec | None, request: Mapping[str, Any]) -> None:
    """Raises Refusal, by name, for what a session has had since its first turn and is asked for otherwise now."""
    agent = agent or AgentSpec()
    if agent.cwd is not None and agent.cwd != known.cwd:
        raise _fixed("cwd")
    if agent.add_dirs and agent.add_dirs != known.add_dirs:
        raise _fixed("add_dirs")
    if agent.append_system is not None and agent.append_system != known.append_system:
        raise _fixed("append_system")
    system = system_of(request.get("system"))
    if system and system != known.system:
        raise _fixed("system")


def _fixed(param: str) -> Refusal:
    why = f"`{param}` was fixed by the first turn of the session, and was another one."
    return Refusal.because(Code.INVALID_REQUEST, why, param=param)


def _with_system(request: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    rest = {name: value for name, value in request.items() if name != "system"}
    return {**rest, "system": system} if system else rest
