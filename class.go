package tiercache

import (
	"slices"

	"github.com/tiercache/tiercache/rebuild"
)

// Where the gate is short of slots, a key's class (rebuild.Class) decides who goes first: keys that nobody can answer before those that have a
// copy, and before those that likely have no row.

// covered reports whether there is a copy to answer if the key is not loaded now: then its load lets those go first that have none.
func (c *Cache[K, V]) covered(key K, why cause) bool {
	if why.class != rebuild.Foreground || why.refresh {
		return false
	}
	copied, ok := c.local.Look(key)
	return why.covered || ok && !copied.Absent
}

// classOf is the class in which a key is loaded.
func (c *Cache[K, V]) classOf(key K, id string, why cause) rebuild.Class {
	switch {
	case c.covered(key, why):
		return rebuild.Revalidate
	case c.suspect(id, why):
		return rebuild.Suspect
	}
	return why.class
}

// byClass splits the keys of one load call: those that are suspect are loaded by a call of their own, after the others, which then do not
// wait for them. Keys that have a copy travel with those that have none, since a call is one slot however many it is for.
func (c *Cache[K, V]) byClass(parts []part[K, V]) [][]part[K, V] {
	var others, suspects []part[K, V]
	covered := 0
	for _, p := range parts {
		p.why.covered = p.claim != nil && p.claim.hasStale
		class := c.classOf(p.key, p.id, p.why)
		if class == rebuild.Suspect {
			p.why.class = class
			suspects = append(suspects, p)
			continue
		}
		if class == rebuild.Revalidate {
			covered++
		}
		others = append(others, p)
	}
	if covered == len(others) {
		for i := range others {
			others[i].why.class = rebuild.Revalidate
		}
	}
	return slices.DeleteFunc([][]part[K, V]{others, suspects}, func(some []part[K, V]) bool { return len(some) == 0 })
}
