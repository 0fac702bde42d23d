"""The daemon's log, read without the daemon: ``place`` finds it, ``files`` and ``journal`` read it, ``lines`` are what
it says, ``story`` picks out those of one request."""
