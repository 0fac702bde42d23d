"""The domain, pure: no asyncio, no I/O, no clock, no randomness, no logging."""
