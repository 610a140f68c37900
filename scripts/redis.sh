#!/bin/sh
# Sees to it that there is a redis-server on PATH, through the system's package manager where that needs no password.
# Without one the tests go on: on an embedded imitation where that will do, and the rest is skipped, which test.sh lists.
# TIERCACHE_NO_INSTALL=1 installs nothing. With TIERCACHE_REQUIRE_REDIS=1 it is an error if there is none in the end.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

give_up() {
	echo "redis: $1" >&2
	echo "redis: install it yourself (apt-get install redis-server, apk add redis, dnf install redis, brew install redis)." >&2
	if [ "${TIERCACHE_REQUIRE_REDIS:-}" = 1 ]; then
		exit 1
	fi
	echo "redis: going on without: some tests run against miniredis, others are skipped; they are listed at the end." >&2
	exit 0
}

# as_root runs a command as root, or fails at once where that would ask for a password.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo -n "$@"
	fi
}

if have redis-server; then
	exit 0
fi
if [ "${TIERCACHE_NO_INSTALL:-}" = 1 ]; then
	give_up "there is no redis-server on PATH and TIERCACHE_NO_INSTALL is set."
fi

# Homebrew refuses root and needs none.
if have brew; then
	echo "redis: there is no redis-server on PATH; installing it with brew."
	brew install --quiet redis || give_up "brew install failed."
elif [ "$(id -u)" != 0 ] && ! { have sudo && sudo -n true 2>/dev/null; }; then
	give_up "there is no redis-server on PATH, and installing it needs root."
elif have apt-get; then
	echo "redis: there is no redis-server on PATH; installing the package redis-server with apt-get."
	{ as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends redis-server >/dev/null; } || give_up "apt-get failed."
elif have apk; then
	echo "redis: there is no redis-server on PATH; installing the package redis with apk."
	as_root apk add --quiet --no-cache redis || give_up "apk failed."
elif have dnf; then
	echo "redis: there is no redis-server on PATH; installing it with dnf."
	# Newer releases carry valkey, which brings redis-server as a name for itself.
	as_root dnf install -y -q redis || as_root dnf install -y -q valkey-compat-redis || give_up "dnf failed."
else
	give_up "there is no redis-server on PATH and no package manager that this script knows."
fi
have redis-server || give_up "the package is installed, but there is still no redis-server on PATH."
redis-server --version
