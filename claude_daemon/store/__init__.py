"""The store: SQLite, one file, one process.

``sqlite`` is the whole of it, put together from nouns: ``tasks`` (what changes them), ``queries`` (what is read of
them), ``retention``, ``ledger``, ``budget``, ``audit``, ``webhooks``, ``keys``, ``sessions``, ``meta``. ``writer`` is
the one thread that writes them, ``readers`` those beside it. ``schema`` opens and migrates a file, ``copies`` and
``restore`` take it away and bring it back.
"""

from claude_daemon.store.restore import restore
from claude_daemon.store.schema import migrate, needs_migration
from claude_daemon.store.sqlite import VERBS, SqliteStore

__all__ = ["VERBS", "SqliteStore", "migrate", "needs_migration", "restore"]
