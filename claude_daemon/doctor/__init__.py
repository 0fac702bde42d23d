"""What is around the daemon, looked at without one: ``claudectl doctor`` runs this as a program of its own.

Nothing is changed, nothing is asked beyond this machine. An installation that is broken is a finding too, so
:mod:`~claude_daemon.doctor.__main__` imports what it needs only when it looks at it.
"""
