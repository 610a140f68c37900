#!/bin/sh
# Compares the Go benchmarks of this tree with those of a revision, in interleaved rounds: a machine that grows slow during the run
# then slows both. Usage: bench-compare.sh REF ROUNDS. BENCH (.) chooses benchmarks, PKGS (./...) packages.
# The raw figures stay in bin/bench-old.txt and bin/bench-new.txt.
set -eu
ref=$1
rounds=$2
root=$PWD
old=$(mktemp -d)
trap 'git worktree remove --force "$old" >/dev/null 2>&1 || rm -rf "$old"' EXIT
git worktree add --detach "$old" "$ref" >/dev/null
: >"$root/bin/bench-old.txt"
: >"$root/bin/bench-new.txt"
i=0
while [ "$i" -lt "$rounds" ]; do
	i=$((i + 1))
	echo "round $i of $rounds"
	(cd "$old" && go test -run '^$' -bench "${BENCH:-.}" -benchmem -count=1 ${PKGS:-./...}) >>"$root/bin/bench-old.txt"
	(cd "$root" && go test -run '^$' -bench "${BENCH:-.}" -benchmem -count=1 ${PKGS:-./...}) >>"$root/bin/bench-new.txt"
done
"$root/bin/benchstat" "$ref=$root/bin/bench-old.txt" "here=$root/bin/bench-new.txt"
