package tiercache

import (
	"slices"
	"time"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/rebuild"
)

// absence keeps requests for keys without a row, which may be made up without end, from taking the gate away from keys that have one: while
// loads that find nothing take more than their share of the gate (rebuild.Gate.Flooded), keys that are not known to exist are loaded as
// rebuild.Suspect, in slots of their own.
type absence struct {
	rows *bloom.Seen // keys of which this process saw a row lately: loaded, read from Redis, set or announced
}

// suspect reports whether a key is likely absent, at a time when that matters.
func (c *Cache[K, V]) suspect(id string, why cause) bool {
	return why.class == rebuild.Foreground && !why.marked && c.gate.Flooded() && !c.absence.rows.Has(id)
}

// classOf is the class in which a key is loaded.
func (c *Cache[K, V]) classOf(id string, why cause) rebuild.Class {
	if c.suspect(id, why) {
		return rebuild.Suspect
	}
	return why.class
}

// byClass splits the keys of one load call: those that are suspect are loaded by a call of their own, after the others, which then do not
// wait for them.
func (c *Cache[K, V]) byClass(parts []part[K, V]) [][]part[K, V] {
	var others, suspects []part[K, V]
	for _, p := range parts {
		if c.suspect(p.id, p.why) {
			p.why.class = rebuild.Suspect
			suspects = append(suspects, p)
			continue
		}
		others = append(others, p)
	}
	return slices.DeleteFunc([][]part[K, V]{others, suspects}, func(some []part[K, V]) bool { return len(some) == 0 })
}

// backMany tells the gate of a load call that came back, and notes the rows that it found.
func (c *Cache[K, V]) backMany(parts []part[K, V], rows map[K]V, took time.Duration) {
	found := 0
	for _, p := range parts {
		if _, ok := rows[p.key]; ok {
			found++
			c.absence.rows.Add(p.id)
		}
	}
	c.gate.Back(parts[0].why.class, took, float64(len(parts)-found)/float64(len(parts)))
}
