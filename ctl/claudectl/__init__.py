"""claudectl: steers a running claude-daemon over its control socket.

The map:

- ``main``      the root command: global options, subcommands loaded on demand, exit codes
- ``options``   what every command takes, before or after its name
- ``sockets``   where the control socket may be, and the first that answers
- ``client``    HTTP over that socket; one request a connection, documents or streamed lines
- ``errors``    what can go wrong, each with its exit code
- ``errors``    what can go wrong, each with its exit code
- ``clean``     text from elsewhere made safe for a terminal
- ``render``    answers of the daemon as plain, aligned text
- ``progress``  one rewritten line on a terminal
- ``departure`` the end of a daemon, seen from outside
- ``commands``  one module for each command noun

Starting fast is part of the interface: nothing here imports asyncio, aiohttp, pydantic or rich, and a command
pays for no other command's imports.
"""
