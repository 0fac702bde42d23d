"""HTTP and WebSocket: the only package besides ``upstream`` and ``offline`` that knows aiohttp."""
