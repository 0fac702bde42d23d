"""Redis, for now as a dependency whose health is watched; nothing is kept there yet.

``address`` is a URL, ``standing`` what is known of it (pure), ``fault`` what is wrong with it in words, ``link`` the
connection. Import this where Redis is configured, and only there: the client takes 0.1 s and 10 MiB.
"""

from claude_daemon.store.redis.address import Address, BadAddress
from claude_daemon.store.redis.link import Pace, RedisLink

__all__ = ["Address", "BadAddress", "Pace", "RedisLink"]
