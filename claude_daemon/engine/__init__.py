"""Claude Code as an engine: the text lane's warm processes, agents in their sandbox, sessions.

- ``launch``        argv and environment of a worker (pure)
- ``plan``          a Messages API request as the steps of one turn (pure)
- ``stream``        bytes of the CLI's stdout to messages, messages to lines of its stdin (pure)
- ``turn``          the CLI's messages of one turn to Messages API events (pure)
- ``fill``          how many processes there should be; ``floors`` what each trust domain keeps of them (pure)
- ``failures``      when to try again after a failed start (pure)
- ``process``       the only file that spawns the CLI; signals, stderr ring, subreaper
- ``ledger``        which workers are ours, for the start after a SIGKILL
- ``strays``        what workers leave behind, found and ended
- ``spawner``       a worker's directory, account, launch, process and ledger entry
- ``worker``        one process: starting, idle, busy, recycling, gone; ``deadline`` its limits
- ``pool``          who gets which worker; fills, retires, backs off; ``lease`` a worker held for one turn
- ``report``        the pool in words and numbers
- ``capabilities``  what we rely on in the CLI, and what we do without it; ``probe`` finds out
- ``check``         the same tried again beside the work, and that launches hold; ``bait`` what they must withstand
- ``lane``          all of it as one engine; ``wear`` when a process has served for long enough
- ``client_tools``  a client's own tools on the text lane (pure)
- ``agent``         the agent lane; ``agent_worker`` its process, ``agent_turn`` its messages, ``agent_facts`` and
                    ``agent_changes`` what it did, ``agent_spares`` processes ahead, ``agent_quota`` its disk
- ``sandbox``       what an agent is shut into; ``cgroup`` its limits; ``removal`` of what it leaves
- ``mcp``           the servers of an attempt, ``mcp_stdio`` those that are programs
- ``session``       the session lane; ``session_home`` where a session lives
- ``schema``        JSON schemas that clients send, checked in a killable child
"""
