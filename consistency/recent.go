package consistency

import (
	"sync"
	"time"
)

const (
	maxRecent      = 100_000  // keys; chosen; not tuned
	maxRecentBytes = 16 << 20 // of their string forms: 160 a key at the bound; chosen; not tuned
	recentParts    = 3        // turns in the time that is kept; a key is kept for up to one turn longer. Chosen; not tuned
)

// Recent are the keys that were invalidated of late: what a shared tier may lose although it said that it was done, when another server
// takes over or an older copy of its data is loaded. A key is to be noted before its invalidation is sent ("recent before send"):
//
//  1. The shared tier carries out an invalidation and loses it at once: another server takes over.
//  2. The takeover is noticed: all recent keys are repeated.
//  3. The reply of 1 arrives: were the key noted only now, nobody would ever repeat it.
//
// Each key is there once, at least for the time that is kept, counted in turns of Age. More keys, or more bytes of them, than the bounds
// allow are not kept one by one: then all keys count as recent, until that is as long ago. All methods may be called concurrently; none
// blocks.
type Recent struct {
	turn  time.Duration
	limit int

	mu    sync.Mutex
	begun time.Time // of the newest part
	parts [recentParts + 1]recentPart
}

// recentPart are the keys that were noted last in one turn. The first of the parts is the newest.
type recentPart struct {
	ids   map[string]struct{}
	bytes int
	whole bool // more came than fits: every key counts as noted here
}

// NewRecent returns a Recent that keeps keys for so long, at most limit of them; zero or negative: 60 s, 100,000.
func NewRecent(keep time.Duration, limit int) *Recent {
	if keep <= 0 {
		keep = time.Minute
	}
	if limit <= 0 {
		limit = maxRecent
	}
	return &Recent{turn: keep / recentParts, limit: limit, begun: time.Now()}
}

// Note keeps ids from now on, as if none of them had been noted before.
func (r *Recent) Note(ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	newest := &r.parts[0]
	for _, id := range ids {
		if _, here := newest.ids[id]; here {
			continue
		}
		for i := 1; i < len(r.parts); i++ {
			r.parts[i].drop(id)
		}
		if keys, bytes := r.sizeLocked(); keys >= r.limit || bytes+len(id) > maxRecentBytes {
			r.parts = [len(r.parts)]recentPart{{whole: true}}
			continue
		}
		if newest.ids == nil {
			newest.ids = map[string]struct{}{}
		}
		newest.ids[id] = struct{}{}
		newest.bytes += len(id)
	}
}

// drop forgets id, if it is there.
func (p *recentPart) drop(id string) {
	if _, here := p.ids[id]; here {
		delete(p.ids, id)
		p.bytes -= len(id)
	}
}

func (r *Recent) sizeLocked() (keys, bytes int) {
	for i := range r.parts {
		keys += len(r.parts[i].ids)
		bytes += r.parts[i].bytes
	}
	return keys, bytes
}

// Age lets go of what is old enough. It is to be called now and then, and only while the shared tier is known to be the one that it was:
// what is noted before an outage must still be there at its end, however long it lasts.
func (r *Recent) Age() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.begun) < r.turn {
		return
	}
	copy(r.parts[1:], r.parts[:recentParts])
	r.parts[0], r.begun = recentPart{}, now
}

// All returns the recent keys, in no order; whole says that there were more than could be kept, and every key is to be taken for one.
func (r *Recent) All() (ids []string, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys, _ := r.sizeLocked()
	ids = make([]string, 0, keys)
	for i := range r.parts {
		whole = whole || r.parts[i].whole
		for id := range r.parts[i].ids {
			ids = append(ids, id)
		}
	}
	return ids, whole
}

// Len returns how many keys are kept one by one.
func (r *Recent) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys, _ := r.sizeLocked()
	return keys
}
