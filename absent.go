package tiercache

import (
	"time"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/rebuild"
)

// absence is what this process knows of keys without a row, which may be made up without end. It keeps requests for them from two things.
//
// From taking the gate away from keys that have a row: while loads that find nothing take more than their share of it (rebuild.Gate.Flooded),
// keys that are not known to exist are loaded as rebuild.Suspect, in slots of their own.
//
// From filling Redis with a "not found" each, some 150 bytes that nobody will read: where nothing stands in Redis and nobody waits for the
// lease, it is stored only when this process finds the key absent a second time. Until then memory keeps it, for as long as Redis would have.
// What Refresh finds is stored at once.
type absence struct {
	rows   *bloom.Seen // keys of which this process saw a row lately: loaded, read from Redis, set or announced
	missed *bloom.Seen // keys that were found absent lately, here or, as Redis says, elsewhere; nil: all are told to Redis
}

// What is remembered of absent keys. Chosen; not tuned: as many as a source finds absent in two minutes that has 2,000 loads a second to spare for
// them, eight bytes each in two generations, 4 MB: of a million keys that are asked for once about two count as asked for twice (computed).
const (
	missedKeys  = 1 << 18
	missedBits  = 64
	missedLeast = time.Minute
)

// absence returns an absence that knows no key. A key is remembered for two AbsentTTL at least: had it been stored when it was found absent
// first, that would have ended by the time it is forgotten, so the rule costs a process one load more and no more.
func (o Options[K, V]) absence() (a absence, err error) {
	if a.rows, err = bloom.NewSeen(bloom.SeenOptions{}); err != nil || o.Shared == nil || o.AbsentMisses == 1 {
		return a, err
	}
	a.missed, err = bloom.NewSeen(bloom.SeenOptions{Keys: missedKeys, Bits: missedBits, For: max(missedLeast, 2*o.AbsentTTL)})
	return a, err
}

// firstMiss notes a key that was loaded and found absent, and reports whether that was the first time: then nobody but its process may know.
func (a *absence) firstMiss(id string) bool { return a.missed != nil && !a.missed.Add(id) }

// read notes what Redis has of a key. Who reads "not found" there stores it again when it has ended: else a key that is asked for at many
// processes in turn would be loaded by each of them anew.
func (a *absence) read(id string, absent bool) {
	switch {
	case !absent:
		a.rows.Add(id)
	case a.missed != nil:
		a.missed.Add(id)
	}
}

// keptMeanwhile is the second look of a rebuild into memory: what a rebuild of this process may have kept since its caller looked. For what is
// in Redis the lease's second look does that; but Redis is not told everything (a first miss, a value that is too large):
//
//	1 A finds nothing in memory, and nothing in Redis
//	2 B's rebuild finds the key absent, keeps that in memory only, gives the lease back and ends
//	3 A's rebuild is granted the lease and loads again
//
// What is there must be answerable, and is of after A's mark or was answerable when A began. A flight of the key that is under way is joined, so
// nothing comes between this look and the load but a flight that an invalidation forgot: its mark is void, and it keeps nothing.
func (c *Cache[K, V]) keptMeanwhile(key K, id string, why cause) (a answer[V], ok bool) {
	if why.refresh || why.class != rebuild.Foreground {
		return a, false
	}
	ok = c.inMemory(key, id, &a) && !a.stale
	return a, ok
}

// suspect reports whether a key is likely absent, at a time when that matters.
func (c *Cache[K, V]) suspect(id string, why cause) bool {
	return why.class == rebuild.Foreground && !why.marked && c.gate.Flooded() && !c.absence.rows.Has(id)
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
