"""The text lane: warm Claude Code processes, reused by ``/clear``.

- ``launch``        argv and environment of a worker (pure)
- ``plan``          a Messages API request as the steps of one turn (pure)
- ``stream``        bytes of the CLI's stdout to messages, messages to lines of its stdin (pure)
- ``turn``          the CLI's messages of one turn to Messages API events (pure)
- ``process``       the only file that spawns the CLI; signals, stderr ring, subreaper
- ``ledger``        which workers are ours, for the start after a SIGKILL
- ``worker``        one process: starting, idle, busy, recycling, gone
- ``pool``          who gets which worker; fills, retires, backs off
- ``capabilities``  what we rely on in the CLI: probes and fallbacks
- ``schema``        JSON schemas that clients send, checked in a killable child
"""
