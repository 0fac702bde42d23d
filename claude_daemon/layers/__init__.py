"""Where settings come from, and what is wrong with them.

defaults < profile < TOML file < environment < flags. Every layer is a tree; trees are merged *before* anything
is validated, so each value, good or bad, can still name its source. This package knows no setting by name:
types come from the pydantic model it is given.

- tables merge key by key, lists and plain values replace
- nothing raises on bad input: faults are collected, and ``config.load`` raises them all as one
  :class:`ConfigError`
- no message ever holds a secret, nor a value that looks like one

``sources`` reads a layer, ``text`` its strings; ``tree`` merges layers; ``validation`` makes the model of them;
``report`` tells the result; ``schema`` is what all of them ask about a key, ``fault`` what they find wrong.
"""

from claude_daemon.layers.fault import ConfigError, Conflict, Fault
from claude_daemon.layers.report import digest, explain
from claude_daemon.layers.tree import Layer, Origin

__all__ = ["ConfigError", "Conflict", "Fault", "Layer", "Origin", "digest", "explain"]
