"""What the daemon tells about itself: logs and metrics. ``logging`` is where to start reading."""

import sys

# structlog imports rich where it is installed, for tracebacks that we never let it render: 3 MB and 45 ms of
# every start. claudectl needs rich, so it is installed; here it is hidden for the length of this one import.
if not {"rich", "structlog"} & sys.modules.keys():
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
