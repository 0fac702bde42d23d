# claude-daemon in a container: see docs/operating.md.
# The digest is that of the tag in docker-library/repo-info, repos/python/remote/3.13-slim-trixie.md (Python 3.13.14).
FROM python:3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6 AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY claude_daemon claude_daemon
COPY ctl ctl
RUN python -m venv /opt/claude-daemon \
    && /opt/claude-daemon/bin/python -m pip install --no-cache-dir --no-compile .

FROM python:3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6
# bubblewrap is the sandbox of agents, git what they often want; the versions are those of the pinned Debian release
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/claude-daemon --create-home --shell /usr/sbin/nologin claude-daemon \
    && chmod 0700 /var/lib/claude-daemon
COPY --from=build /opt/claude-daemon /opt/claude-daemon
ENV PATH=/opt/claude-daemon/bin:$PATH \
    HOME=/var/lib/claude-daemon \
    PYTHONDONTWRITEBYTECODE=1 \
    CLAUDE_DAEMON_HOME=/var/lib/claude-daemon \
    CLAUDE_DAEMON_PROFILE=prod \
    # the container's own address: what reaches it is for `docker run --publish 127.0.0.1:8006:8006` to say
    CLAUDE_DAEMON_HTTP__HOST=0.0.0.0 \
    CLAUDE_DAEMON_HTTP__ALLOW_PLAINTEXT=true \
    # stderr alone, which is the container's log
    CLAUDE_DAEMON_LOG__FILE=none
USER 10001:10001
WORKDIR /var/lib/claude-daemon
VOLUME /var/lib/claude-daemon
EXPOSE 8006
# TERM drains; give it longer than drain.deadline_s (60 s): docker stop --time 90
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["claudectl", "--timeout", "4", "health"]
# No init beside it: the daemon is a subreaper, and buries what its workers leave behind.
ENTRYPOINT ["claude-daemon"]
CMD ["run"]
