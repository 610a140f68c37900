package layers

import "time"

// Entry is what a tier keeps of one key: a value or the knowledge that the source has none, and the moments that bound its life.
// The moments are of this process's clock; what Redis keeps are moments of its server's clock, translated when they are read.
// The value is shared by all who are given the entry: it must not be changed.
type Entry[V any] struct {
	Value   V
	Absent  bool          // the source said "no such key"; Value is zero
	Born    time.Time     // when it was stored, or loaded where it was never stored
	Soft    time.Time     // fresh before this
	Hard    time.Time     // never answered from this on; not before Soft
	Version uint64        // of the row, where the source has one; else 0. Memory does not keep this and what follows
	Cost    time.Duration // what the load took
	Size    int           // bytes of the encoded value; 0: it was not encoded
}

// Fresh reports whether e may be answered without asking anybody.
func (e *Entry[V]) Fresh(now time.Time) bool { return now.Before(e.Soft) }

// Stale reports whether e is past its soft end but may still be answered while it is rebuilt or because that failed.
func (e *Entry[V]) Stale(now time.Time) bool { return !now.Before(e.Soft) && now.Before(e.Hard) }

// Expired reports whether e must not be answered any more.
func (e *Entry[V]) Expired(now time.Time) bool { return !now.Before(e.Hard) }

// Cap shortens e's life so that it ends at the moment end: both its soft and its hard end. The zero moment caps nothing.
func (e *Entry[V]) Cap(end time.Time) {
	if end.IsZero() {
		return
	}
	if e.Hard.After(end) {
		e.Hard = end
	}
	if e.Soft.After(end) {
		e.Soft = end
	}
}

// Lives are the two lengths of an entry's life, counted from the moment it is stored.
type Lives struct {
	Soft time.Duration // fresh for
	Hard time.Duration // kept for; at least Soft
}

// NewLives draws the life of an entry that may be fresh for ttl and stale for maxStale after it (never longer than ttl; 0 or negative: not at all).
// Jitter in [0,1) is the largest fraction of ttl taken off at random; random is uniform in [0,1). Jitter only shortens, and no life is
// shorter than a millisecond, which is the precision of Redis.
func NewLives(ttl, maxStale time.Duration, jitter, random float64) Lives {
	soft := Shorten(ttl, jitter, random)
	stale := min(max(maxStale, 0), ttl)
	return Lives{Soft: soft, Hard: soft + stale}
}

// Shorten takes the fraction jitter·random off life, at random in [0,1), and leaves at least a millisecond.
func Shorten(life time.Duration, jitter, random float64) time.Duration {
	if jitter > 0 {
		life -= time.Duration(float64(life) * jitter * random)
	}
	return max(life, time.Millisecond)
}
