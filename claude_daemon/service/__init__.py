"""Use cases, over ports: what the daemon does, without HTTP and without processes.

- ``admit``     may this request run, on which lane, as which task
- ``dispatch``  the life of an attempt; ``queue`` who is next, ``run`` a task on its way, ``judge`` its schema
- ``budget``    may more be spent, and what was; ``limits`` may more be asked for; ``usage`` what is told of it
- ``tail``      a task's events, numbered, bounded, followed
- ``health``    the checks, their worst, and the probes
- ``drain``     ending well
- ``hint``      a word to whoever waits now
"""
