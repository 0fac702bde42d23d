"""What a daemon owes the machine it runs on: a pid file, sockets, and those who start and watch it."""
