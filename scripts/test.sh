#!/bin/sh
# Runs the library's tests: `test.sh auto` with the race detector where it can be built, `test.sh race` or not at all.
# It ends with what was skipped or imitated for want of a redis-server. The whole output is kept in bin/test.log.
set -eu
mode=${1:-auto}
mkdir -p bin

# The race detector needs cgo, a C compiler that works, and a platform that has it: building a program tells all three.
can_race() {
	probe=$(mktemp -d) || return 1
	printf 'package main\n\nimport "C"\n\nfunc main() {}\n' >"$probe/main.go"
	(cd "$probe" && GOWORK=off go build -race -o probe main.go) >"$probe/log" 2>&1
	status=$?
	rm -r "$probe"
	return $status
}

if can_race; then
	race=-race
	echo "test: with the race detector"
elif [ "$mode" = race ]; then
	echo "test: the race detector needs cgo and a C compiler, and there is none that works here." >&2
	exit 1
else
	race=
	echo "test: WITHOUT the race detector: it needs cgo and a C compiler (for instance: apt-get install gcc libc6-dev)"
fi

TIERCACHE_SKIP_LOG=$PWD/bin/skips.log
export TIERCACHE_SKIP_LOG
rm -f "$TIERCACHE_SKIP_LOG" bin/test.status

# -count=1: what a real server does is not in the cache of test results. -parallel 4: on two processors too, for most of the tests that run beside
# others wait for a server that they stopped.
{
	status=0
	# shellcheck disable=SC2086 # race is one word or none
	go test $race -count=1 -parallel 4 -timeout 20m ./... || status=$?
	if [ -n "$race" ]; then
		# The race detector allocates, so what counts allocations skips itself under it and has its turn here.
		echo "test: what counts allocations, without the race detector"
		go test -count=1 -run Alloc ./... || status=1
	fi
	echo "$status" >bin/test.status
} 2>&1 | tee bin/test.log

if [ -s "$TIERCACHE_SKIP_LOG" ]; then
	echo
	echo "test: for want of a real redis-server:"
	sort -u "$TIERCACHE_SKIP_LOG" | sed 's/^/  /'
fi
exit "$(cat bin/test.status)"
