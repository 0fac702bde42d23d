"""claudectl: steers a running claude-daemon over its control socket.

The map:

- ``main``      the root command: global options, subcommands loaded on demand, exit codes
- ``options``   what every command takes, before or after its name
- ``sockets``   where the control socket may be, and the first that answers
- ``client``    HTTP over that socket; one request a connection, documents or streamed lines
- ``errors``    what can go wrong, each with its exit code
- ``clean``     text from elsewhere made safe for a terminal
- ``render``    answers of the daemon as plain, aligned text; ``tasktext`` those about tasks, ``statustext`` those
  about the daemon as a whole
- ``figures``   numbers as people read them at a glance
- ``screen``    the daemon on one screen; ``board`` what it is doing now: both draw with rich
- ``watching``  the daemon's stream of what happens, to its proper end
- ``keyboard``  single keys; ``beside`` the threads that they and a stream are read in
- ``smoke``     the questions of ``claudectl test``; ``web`` asks them over the public port
- ``logs``      the daemon's log, read without the daemon
- ``diagnosis`` what can be found out about a daemon that need not run, told by ``findings``; ``bundle`` packs it for a
  report, of which ``redaction`` takes the secrets out
- ``moment``    ages and dates as people write them
- ``progress``  one rewritten line on a terminal
- ``transcript`` a task's events, told to a person
- ``follow``    a task followed to its end, whatever becomes of the daemon meanwhile
- ``departure`` the end of a daemon, seen from outside
- ``commands``  one module for each command noun

Starting fast is part of the interface: nothing here imports asyncio, aiohttp or pydantic, rich and websockets are for
the commands that need them, and a command pays for no other command's imports.
"""
