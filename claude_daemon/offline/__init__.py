"""The offline model: a Messages API server on loopback that needs no account and no network.

`OfflineModel` answers what the real API would answer, in its exact shapes, with deterministic text. A prompt
steers it with markers, so one request can ask for any length, pace, tool call or failure:

======================  =====================================================================================
marker                  effect
======================  =====================================================================================
``[[tokens=200]]``      the default reply (or the one after tool results) has exactly that many tokens
``[[text=…]]``          reply this text, verbatim, up to the next ``]]``
``[[bytes=10000000]]``  reply that many bytes, in 64 KiB deltas
``[[history]]``         reply one line per message: its role and first words
``[[system]]``          reply the system prompt
``[[thinking]]``        think first, where the request's `thinking` is `adaptive` (`enabled` alone suffices)
``[[refusal]]``         stop with `refusal`
``[[tool=NAME]]``       call this tool; several markers make parallel calls
``[[input={"a":1}]]``   input of a call: the n-th belongs to the n-th ``[[tool=…]]`` (else the smallest valid)
``[[repeat=3]]``        call the tools in the first 3 rounds of the turn, not only in the first
``[[one-by-one]]``      make the calls in the order of their markers, one a round
``[[no-structured]]``   do not answer in the asked form: neither by Claude Code's `StructuredOutput` tool nor in JSON
``[[no-format]]``       refuse a request that has `output_config.format` with 400, as an older gateway would
``[[invalid]]``         break the JSON instance (structured output, tool input) on purpose, in every round
``[[usage=absent]]``    usage `absent`, `negative` or `absurd` instead of `exact`
``[[first=300ms]]``     wait between the headers and the first event
``[[pace=10ms]]``       wait between deltas
``[[hang]]``            never answer
``[[error=529]]``       answer this status: 400, 401, 403, 404, 413, 429, 500, 529
``[[retry-after=2]]``   with ``[[error=429]]`` and other statuses: the `retry-after` header, in seconds
``[[stall=3]]``         after 3 deltas say nothing more, connection open
``[[cut=3]]``           after 3 deltas (and 0.1 s, for the client to read them) drop the connection
``[[malformed=3]]``     after 3 deltas an event whose data is not JSON, then the end of the stream
``[[error-event=3]]``   after 3 deltas an `error` event (`overloaded_error`), then the end of the stream
``[[times=1]]``         the fault happens only the first N times this prompt is seen in this round
``[[round=2]]``         the fault, or ``[[invalid]]``, happens only in this round of the turn
``[[drift]]``           from the second time this prompt is seen, the text differs (upper case)
======================  =====================================================================================

Markers are read in the last text a user wrote; what Claude Code writes in a user's name is not read. They
are never quoted back. A *round* is one model call of a turn: 1 for the user's text, 2 after the first tool
results, and so on. A prompt is that text, markers included, in one round. One fault at a time: the last wins.
Deltas are those that carry text, thinking or tool input; each is one output token.

What only a stream can suffer (`malformed`, `error-event`) leaves an answer that is not streamed unharmed;
`stall` then hangs and `cut` drops the connection. A marker whose value makes no sense is a 400 that names it;
what merely looks like a marker is text. `Settings` carries the same knobs as defaults for every prompt.

Nothing here imports the rest of claude_daemon.
"""

from claude_daemon.offline.requestlog import Recorded
from claude_daemon.offline.server import OfflineModel
from claude_daemon.offline.settings import Fault, FaultKind, Settings, UsageKind

__all__ = ["Fault", "FaultKind", "OfflineModel", "Recorded", "Settings", "UsageKind"]
