"""The text lane: warm Claude Code processes, reused by ``/clear``.

- ``launch``        argv and environment of a worker (pure)
- ``plan``          a Messages API request as the steps of one turn (pure)
- ``stream``        bytes of the CLI's stdout to messages, messages to lines of its stdin (pure)
- ``turn``          the CLI's messages of one turn to Messages API events (pure)
- ``fill``          how many processes there should be (pure)
- ``failures``      when to try again after a failed start (pure)
- ``process``       the only file that spawns the CLI; signals, stderr ring, subreaper
- ``ledger``        which workers are ours, for the start after a SIGKILL
- ``strays``        what workers leave behind, found and ended
- ``spawner``       a worker's directory, account, launch, process and ledger entry
- ``worker``        one process: starting, idle, busy, recycling, gone; ``deadline`` its limits
- ``pool``          who gets which worker; fills, retires, backs off; ``lease`` a worker held for one turn
- ``report``        the pool in words and numbers
- ``capabilities``  what we rely on in the CLI, and what we do without it; ``probe`` finds out
- ``lane``          all of it as one engine
- ``schema``        JSON schemas that clients send, checked in a killable child
"""
