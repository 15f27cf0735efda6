#!/usr/bin/env bash
# Starts a Docker daemon unless one is running. Installs Debian's docker.io if there is no dockerd.
# Both need root.
#
#   tests/container/daemon.sh          the daemon keeps running, its process ID in $STATE/pid
#   tests/container/daemon.sh stop     stops the daemon that this script started
set -euo pipefail

STATE=${DOCKER_STATE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flower-classifier-docker}
PATIENCE=60 # seconds to wait for a daemon

fail() {
  echo "$1" >&2
  exit 1
}

answers() {
  docker info >/dev/null 2>&1
}

started_pid() { # the process ID of the daemon started here, if it still runs
  local pid
  pid=$(cat "$STATE/pid" 2>/dev/null) || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && echo "$pid"
}

install_docker() {
  command -v apt-get >/dev/null ||
    fail "Expected dockerd, or apt-get to install it. Received: neither. Install Docker by hand."
  echo "Installing docker.io ..."
  local log=$STATE/install.log
  {
    apt-get update && apt_install docker.io &&
      # Newer Debian releases have a separate package for the client.
      { command -v docker || apt_install docker-cli; }
  } >"$log" 2>&1 </dev/null ||
    fail "Expected apt-get to install docker.io. Received: $(tail -n 1 "$log"). See $log."
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}

start_daemon() {
  # Installing the package may have started its service.
  answers && return
  echo "Starting dockerd ..."
  # A killed daemon leaves this file, with an ID that another process may have by now.
  rm -f "$STATE/pid"
  setsid dockerd --data-root "$STATE/data" --pidfile "$STATE/pid" \
    >"$STATE/dockerd.log" 2>&1 </dev/null &
  local waited
  for ((waited = 0; waited < PATIENCE; waited++)); do
    answers && return
    kill -0 $! 2>/dev/null || break
    sleep 1
  done
  fail "Expected dockerd to answer within $PATIENCE seconds. Received: $(tail -n 1 "$STATE/dockerd.log"). See $STATE/dockerd.log."
}

remove_leftovers() { # untagged images of earlier runs, only in a daemon that has no other user
  started_pid >/dev/null || return 0
  docker image prune --force --filter until=1h >/dev/null
}

if [ "${1:-}" = stop ]; then
  if pid=$(started_pid); then
    kill "$pid"
    echo "Stopped dockerd (process $pid)."
  else
    echo "No dockerd that was started here is running."
  fi
  exit
fi

if answers; then
  remove_leftovers
  echo "A Docker daemon answers."
  exit
fi
[ "$(id -u)" = 0 ] ||
  fail "Expected a Docker daemon, or root to start one. Received: neither. Start Docker, or run this as root."
mkdir -p "$STATE"
command -v dockerd >/dev/null || install_docker
start_daemon
remove_leftovers
echo "A Docker daemon answers (process $(cat "$STATE/pid" 2>/dev/null || echo unknown), data in $STATE/data)."
