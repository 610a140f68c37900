#!/bin/sh
# Runs every fuzz test of the library for the given time, one after the other.
set -eu
time=${1:-10s}
found=0
for pkg in $(go list ./...); do
	for name in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		found=1
		echo "fuzz $pkg $name for $time"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$pkg"
	done
done
if [ "$found" = 0 ]; then
	echo "fuzz: there is no fuzz test" >&2
	exit 1
fi
