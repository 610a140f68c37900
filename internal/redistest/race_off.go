//go:build !race

package redistest

// Race reports whether the race detector is built in. It allocates on its own account, and pools then lose what they hold, so that a
// test which counts allocations skips itself under it: scripts/test.sh runs those again without.
const Race = false
