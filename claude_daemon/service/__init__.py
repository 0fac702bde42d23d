"""Use cases, over ports: what the daemon does, without HTTP and without processes.

- ``admit``     may this request run, on which lane, as which task
- ``dispatch``  who is next, and the life of an attempt
- ``tail``      a task's events, numbered, bounded, followed
- ``health``    the checks, their worst, and the probes
- ``drain``     ending well
"""
