"""claude-daemon: Claude Code as a service that one can leave running.

The map, in the order a request sees it:

- ``api``        aiohttp: the HTTP edge, the dialects, the control socket
- ``wire``       models of the public bodies, and the pure translations between dialects
- ``service``    use cases: admit, dispatch, tail, follow, settle, health, drain
- ``core``       pure domain: tasks, events, outcomes, state machines; no I/O, no clock
- ``ports``      what the service needs from the outside, as protocols
- ``engine``     Claude Code processes: the text, agent and session lanes
- ``upstream``   the Messages API client (the direct lane) and the broker that workers talk to
- ``store``      SQLite with group commit; the connection to Redis
- ``offline``    the offline model: a Messages API server on loopback
- ``telemetry``  logs, metrics, traces
- ``supervise``  pid file and sockets, systemd, successors, units
- ``doctor``     what is around the daemon, looked at by a program of its own
- ``daemon``     the composition root: builds everything, owns its lifetime; ``front``, ``durable``, ``operations``,
  ``restart``, ``supervision``, ``configuration``, ``usable``, ``assembly``, ``sources``, ``home``, ``journal``,
  ``meters``, ``gauges``, ``spans``, ``report`` and ``stacks`` are its parts
- ``config``, ``layers``, ``secret``  settings, where each value came from, and what is never shown

Imports run one way: ``core <- ports <- service <- api``. ``engine``, ``upstream`` and ``store`` see core
and ports only, and not each other. ``daemon`` alone knows all.
"""

__version__ = "0.1.0"
