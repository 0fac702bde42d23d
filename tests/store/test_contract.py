"""SQLite keeps the contract."""

from __future__ import annotations

from claude_daemon.ports import Store
from claude_daemon.store import SqliteStore
from tests.store.contract import StoreContract


class TestSqlite(StoreContract):
    async def test_it_is_a_store(self, store: SqliteStore) -> None:
        every: Store = store
        assert every is store
