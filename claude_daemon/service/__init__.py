"""Use cases, over ports: what the daemon does, without HTTP and without processes.

- ``admit``     may this request run, on which lane, as which task
- ``dispatch``  the life of an attempt; ``queue`` who is next by its ``shares``, ``run`` a task on its way, ``judge``
                its schema
- ``attempt``   one attempt, told as it goes; ``book`` what the store hears of it, ``approvals`` its questions
- ``tasks``     durable tasks, as their owners see them; ``sessions`` and ``webhooks`` likewise
- ``backlog``   what waits in the store; ``turns`` whose turn it is in a session, ``deadlines``, ``recover``, ``upkeep``
- ``keys``      made, changed, told apart; ``watch`` who has something open, ``refused`` who was turned away
- ``audit``     the chain: verified, pruned, its head told
- ``budget``    may more be spent, and what was; ``limits`` may more be asked for; ``usage`` what is told of it
- ``tail``      a task's events, numbered, bounded, followed
- ``health``    the checks, their worst, and the probes; ``rules`` when a part passes, ``space`` and ``credential``
                when the disk and our credential do, ``outside`` what is asked of somebody who may hang
- ``drain``     ending well
- ``activity``  what runs and how it went lately, for those who watch; and the word to them when something happens
- ``hint``      a word to whoever waits now
"""
