package fleet

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// What an ordinary `go test` plays; `make fleet` plays more. Chosen: some seconds.
const (
	usualRuns      = 120
	usualReal      = 4
	usualFailovers = 1 // of each kind
	atOnce         = 4 // real runs, which mostly wait
)

// setting is a number from the environment, or what is usual.
func setting(t *testing.T, name string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

// share plays the seeds of one worker of several.
func share(t *testing.T, play func(*testing.T, uint64) *Verdict, worker, workers int, seed, runs uint64) {
	t.Helper()
	for i := uint64(worker); i < runs; i += uint64(workers) { //nolint:gosec // small
		if v := play(t, seed+i); !v.OK() {
			t.Fatalf("run %d of %d broke a promise: %v", i+1, runs, v)
		}
	}
}

// Property: whatever callers do and whatever goes wrong, no run of the fleet breaks a promise. TIERCACHE_FLEET_RUNS runs are played in virtual
// time, from seed TIERCACHE_FLEET_SEED on.
// Broken by: each rule of internal/broken, see TestEveryRuleLeftOutIsCaught.
func TestFleetKeepsItsPromises(t *testing.T) {
	runs, seed := setting(t, "TIERCACHE_FLEET_RUNS", usualRuns), setting(t, "TIERCACHE_FLEET_SEED", 1)
	began, workers := time.Now(), runtime.GOMAXPROCS(0)
	t.Cleanup(func() { t.Logf("%d runs from seed %d on in %v", runs, seed, time.Since(began)) })
	for w := range workers {
		t.Run(fmt.Sprintf("worker %d of %d", w+1, workers), func(t *testing.T) {
			t.Parallel()
			share(t, Virtual, w, workers, seed, runs)
		})
	}
}

// Property: the same on real servers, in real time: killed, stopped, flushed, full, and with their connections cut. TIERCACHE_FLEET_REAL runs
// are played.
// Broken by: the same.
func TestFleetKeepsItsPromisesOnRealServers(t *testing.T) {
	runs, seed := setting(t, "TIERCACHE_FLEET_REAL", usualReal), setting(t, "TIERCACHE_FLEET_SEED", 1)
	for w := range atOnce {
		t.Run(fmt.Sprintf("worker %d of %d", w+1, atOnce), func(t *testing.T) {
			t.Parallel()
			share(t, apart(Real), w, atOnce, seed, runs)
		})
	}
}

// Property: the same on servers with replicas: a master is killed or gives way, under sentinels and in a cluster, where slots move too.
// TIERCACHE_FLEET_FAILOVERS runs of each kind are played.
// Broken by: each rule of internal/broken; tookBack false, and replay left out.
func TestFleetKeepsItsPromisesThroughFailovers(t *testing.T) {
	runs, seed := setting(t, "TIERCACHE_FLEET_FAILOVERS", usualFailovers), setting(t, "TIERCACHE_FLEET_SEED", 1)
	for name, play := range map[string]func(*testing.T, uint64) *Verdict{"sentinels": Sentinels, "cluster": Cluster} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			share(t, apart(play), 0, 1, seed, runs)
		})
	}
}

// apart plays each run as a test of its own, so that its servers end with it.
func apart(play func(*testing.T, uint64) *Verdict) func(*testing.T, uint64) *Verdict {
	return func(t *testing.T, seed uint64) (v *Verdict) {
		t.Helper()
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { v = play(t, seed) })
		switch {
		case v != nil:
		case t.Failed():
			t.FailNow()
		default:
			t.SkipNow() // as the run itself was
		}
		return v
	}
}
