package tiercache

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Hooks are told what a cache does. Any may be nil. They are called synchronously by whatever goroutine does the work, never on a
// memory hit, possibly many at once, and must not block or call the cache. Keys come as a hash that is stable in this process only.
// A panic in one of them is logged, the first time, and ends nothing but that call: what is told of is done or goes on.
type Hooks struct {
	Load        func(keyHash uint64, took time.Duration, err error)  // one call of the loader for one key ended
	SharedError func(op string, err error)                           // a call of Redis failed
	Stale       func(keyHash uint64, age time.Duration, cause error) // an answer past its soft end; cause nil: it is being rebuilt
	Invalidated func(keyHash uint64, here bool)                      // a key was invalidated, by this process or by another
	Bus         func(up bool)                                        // events are heard, or may be missed
	Filter      func(state, due string)                              // of the filter: bloom.State, and why a new one should be built, "" if none: each time either changes
	Hot         func(keyHash uint64, hot bool, rate float64)         // a key is hot from now on, read so often a second, or no longer
	Breaker     func(target, state string)                           // of "source" or "redis" (its worst master): "closed", "half-open", "open"
}

// sourceBreaker is Breaker for the source's.
func (h *Hooks) sourceBreaker() func(state string) {
	if h == nil || h.Breaker == nil {
		return nil
	}
	return func(state string) { h.Breaker("source", state) }
}

// guarded returns h with every hook's panics caught. They would end the process where a goroutine of the library calls the hook, and
// elsewhere leave half done what the caller asked for.
func (h *Hooks) guarded(log *slog.Logger, name string) *Hooks {
	if h == nil {
		return &Hooks{}
	}
	var once sync.Once
	caught := func(hook string) {
		if v := recover(); v != nil {
			once.Do(func() {
				log.Error("tiercache: a hook panicked; further panics are not logged", "cache", name, "hook", hook, "panic", v, "stack", string(debug.Stack()))
			})
		}
	}
	g := *h
	if f := h.Load; f != nil {
		g.Load = func(keyHash uint64, took time.Duration, err error) {
			defer caught("Load")
			f(keyHash, took, err)
		}
	}
	if f := h.SharedError; f != nil {
		g.SharedError = func(op string, err error) {
			defer caught("SharedError")
			f(op, err)
		}
	}
	if f := h.Stale; f != nil {
		g.Stale = func(keyHash uint64, age time.Duration, cause error) {
			defer caught("Stale")
			f(keyHash, age, cause)
		}
	}
	if f := h.Invalidated; f != nil {
		g.Invalidated = func(keyHash uint64, here bool) {
			defer caught("Invalidated")
			f(keyHash, here)
		}
	}
	if f := h.Bus; f != nil {
		g.Bus = func(up bool) {
			defer caught("Bus")
			f(up)
		}
	}
	if f := h.Filter; f != nil {
		g.Filter = func(state, due string) {
			defer caught("Filter")
			f(state, due)
		}
	}
	if f := h.Hot; f != nil {
		g.Hot = func(keyHash uint64, hot bool, rate float64) {
			defer caught("Hot")
			f(keyHash, hot, rate)
		}
	}
	if f := h.Breaker; f != nil {
		g.Breaker = func(target, state string) {
			defer caught("Breaker")
			f(target, state)
		}
	}
	return &g
}
