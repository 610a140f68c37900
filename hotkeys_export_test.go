package tiercache

import (
	"time"

	"github.com/tiercache/tiercache/rebuild"
)

// HeatForTest makes a key hot as HotKeys would, but for good, and returns its beat. What is drawn at random, when in the last part of a life
// this process begins, is at once.
func HeatForTest[K comparable, V any](c *Cache[K, V], key K) (beat func()) {
	care := &hotCare[K, V]{c: c}
	hot := rebuild.HotKey[K]{ID: c.keys.text(key), Key: key}
	care.Heat(hot)
	return func() {
		care.Beat(hot)
		care.lives[hot.ID].due = care.lives[hot.ID].soft.Add(-time.Duration((1 - c.o.RefreshAhead) * float64(c.o.TTL)))
	}
}

// HearFleetForTest has c tell the fleet that keys are read so often here, as at the end of a second, and hear what others told.
func HearFleetForTest[K comparable, V any](c *Cache[K, V], rates map[K]float64) {
	care := &hotCare[K, V]{c: c}
	care.fleet.begin()
	var top []rebuild.HotKey[K]
	for key, rate := range rates {
		top = append(top, rebuild.HotKey[K]{ID: c.keys.text(key), Key: key, Rate: rate})
	}
	care.Window(top)
	care.fleet.tells.Wait()
	care.fleet.end()
}

// InTurnForTest reports whether a caller has the turn to read a hot key from Redis.
func InTurnForTest[V any](c *Cache[string, V], key string) bool {
	r := c.hotReads.of(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done != nil
}
