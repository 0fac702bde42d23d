"""``python -m claude_daemon``: the same as ``claude-daemon``."""

from claude_daemon.cli import main

main()
