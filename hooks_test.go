package tiercache_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
)

// P9: a hook that panics harms nobody: not the goroutine of the bus, nor the call that tells of what it does, which goes on to its end. The
// first panic is logged.
// Broken by: no `defer caught("Invalidated")`, or "Bus", in guarded (the process ends); no once.Do.
func TestPanickingHookEndsNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	s, name := newSource(map[string]string{"j": "old", "k": "old"}), redistest.Name(t)
	log := &lines{}
	o := lasting(name, s)
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	o.Hooks = &tiercache.Hooks{
		Load:        func(uint64, time.Duration, error) { panic("load") },
		SharedError: func(string, error) { panic("shared error") },
		Stale:       func(uint64, time.Duration, error) { panic("stale") },
		Invalidated: func(uint64, bool) { panic("invalidated") },
		Bus:         func(bool) { panic("bus") },
	}
	a, b := openPeer(t, server.Client(t), o), openPeer(t, server.Client(t), o)
	for _, key := range []string{"j", "k"} {
		requireGet(t, a, key, "old")
		requireGet(t, b, key, "old")
		s.write(key, "new")
	}
	require.NoError(t, a.Invalidate(t.Context(), "j", "k"))
	b.heard(t, 2)
	for _, key := range []string{"j", "k"} {
		requireGet(t, a, key, "new")
		requireGet(t, b, key, "new")
	}
	makeStale(t, a.rdb, valueKey(name, "k"))
	o.MemoryTTL = -1
	requireGet(t, openPeer(t, server.Client(t), o), "k", "new")
	require.Equal(t, 3, log.count("a hook panicked"), "once a cache")
}
