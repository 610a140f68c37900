package tiercache

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
)

// errNoSuchKey is what reads of a refused key return: callers that know only ErrNotFound treat it as any other row that is not there.
var errNoSuchKey = fmt.Errorf("%w (%w)", ErrInvalidKey, ErrNotFound)

// guardedValidKey returns a ValidKey that lets pass what the given one panicked on, and logs the first panic: a mistake in a check that
// only saves work must cost no more than that work. Nil stays nil: every key passes.
func guardedValidKey[K comparable](valid func(K) bool, log *slog.Logger, name string) func(K) bool {
	if valid == nil {
		return nil
	}
	var once sync.Once
	return func(key K) (ok bool) {
		defer func() {
			if v := recover(); v != nil {
				ok = true
				once.Do(func() {
					log.Error("tiercache: ValidKey panicked, the key passed; further panics are not logged", "cache", name, "panic", v, "stack", string(debug.Stack()))
				})
			}
		}()
		return valid(key)
	}
}

// admits reports whether key passes Options.ValidKey, and counts it if not.
func (c *Cache[K, V]) admits(key K) bool {
	if c.o.ValidKey == nil || c.o.ValidKey(key) {
		return true
	}
	c.count.invalidKeys.Add(1)
	return false
}

// admitted returns those keys that pass Options.ValidKey, in their order: keys itself, untouched, where there is nothing to ask.
func (c *Cache[K, V]) admitted(keys []K) []K {
	if c.o.ValidKey == nil {
		return keys
	}
	passed := make([]K, 0, len(keys))
	for _, key := range keys {
		if c.admits(key) {
			passed = append(passed, key)
		}
	}
	return passed
}
