"""The Messages API: the direct lane's engine, and the broker through which workers reach it.

- ``sse``         Server-Sent Events, decoded (pure)
- ``meter``       usage and errors, read off a passing response (pure)
- ``credential``  the headers that a credential becomes
- ``client``      one HTTP client for both, its errors translated where they enter
- ``direct``      the direct lane
- ``rewrite``     another system prompt in the place of a worker's own (pure)
- ``broker``      the loopback door for workers
"""
