package consistency

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxWindows    = 10_000 // keys; chosen; not tuned
	windowStripes = 256
	sweepStripes  = 16 // looked through for room at most, when there is none; chosen; not tuned
)

// Windows are the delete windows of a cache without a shared tier: for a while after a key was invalidated, what is loaded for it may
// come from a lagging replica and must be gone when that while is over. They are kept per key up to a bound; beyond it a key's window
// is that of its stripe, one of 256, and so its neighbours' too: they live shorter than they need. Ended windows are dropped when room
// is needed, by whoever needs it. All methods may be called concurrently; none blocks.
type Windows struct {
	length  time.Duration
	limit   int64
	seed    maphash.Seed
	count   atomic.Int64  // windows in all stripes' tables
	sweep   atomic.Uint64 // the stripe that is swept next for room
	stripes [windowStripes]windowStripe
}

// windowStripe has the windows of the keys that hash to it. Its lock is a leaf; nobody holds two.
type windowStripe struct {
	mu    sync.Mutex
	ids   map[string]*window
	whole window // covers every key of the stripe
}

// window is open while a write is under way, and until its end.
type window struct {
	end  time.Time // the latest
	live int       // writes under way
}

// NewWindows returns Windows of the given length, which must be positive, for at most limit keys; zero or negative: 10,000.
func NewWindows(length time.Duration, limit int) *Windows {
	if limit <= 0 {
		limit = maxWindows
	}
	w := &Windows{length: length, limit: int64(limit), seed: maphash.MakeSeed()}
	for i := range w.stripes {
		w.stripes[i].ids = map[string]*window{}
	}
	return w
}

// Open opens the window of each of ids, from now on for the length of w; one that is open lasts as much longer.
func (w *Windows) Open(ids ...string) {
	end := time.Now().Add(w.length)
	for _, id := range ids {
		w.on(id, func(x *window) { x.extend(end) })
	}
}

// Begin opens the windows of ids for a write that is under way, and keeps them open until end is called and for the length of w after
// it. end MUST be called, on every way out of the write; more than once does nothing.
func (w *Windows) Begin(ids ...string) (end func()) {
	type place struct {
		stripe *windowStripe
		window *window
	}
	begun := make([]place, 0, len(ids))
	for _, id := range ids {
		s := w.stripe(id)
		w.on(id, func(x *window) {
			x.live++
			begun = append(begun, place{s, x})
		})
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			end := time.Now().Add(w.length)
			for _, p := range begun {
				p.stripe.mu.Lock()
				p.window.live--
				p.window.extend(end)
				p.stripe.mu.Unlock()
			}
		})
	}
}

// Cut returns the moment by which a value that is loaded from now on for id must be gone; ok is false if no window is open. While a
// write is under way that is a whole length from now: what is loaded stays cached, for that long at most.
func (w *Windows) Cut(id string, now time.Time) (cut time.Time, ok bool) {
	s := w.stripe(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.whole
	if own := s.ids[id]; own != nil {
		at.live += own.live
		at.extend(own.end)
	}
	switch {
	case at.live > 0:
		return now.Add(w.length), true
	case at.over(now):
		return time.Time{}, false
	}
	return at.end, true
}

func (w *Windows) stripe(id string) *windowStripe {
	return &w.stripes[maphash.String(w.seed, id)%windowStripes]
}

// on calls f under the stripe's lock with the window of id: its own, a new one if there is room, else the stripe's.
func (w *Windows) on(id string, f func(*window)) {
	s := w.stripe(id)
	if w.onOwn(s, id, f) {
		return
	}
	freed := w.room(s)
	for i := 0; i < sweepStripes && !freed; i++ { // stripes nobody comes back to give their room too
		freed = w.room(&w.stripes[w.sweep.Add(1)%windowStripes])
	}
	if freed && w.onOwn(s, id, f) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.whole)
}

func (w *Windows) onOwn(s *windowStripe, id string, f func(*window)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.ids[id]
	if x == nil {
		if w.count.Add(1) > w.limit {
			w.count.Add(-1)
			return false
		}
		x = &window{}
		s.ids[id] = x
	}
	f(x)
	return true
}

// room drops the windows of s that are over and reports whether there were any.
func (w *Windows) room(s *windowStripe) (freed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, x := range s.ids {
		if x.over(now) {
			delete(s.ids, id)
			w.count.Add(-1)
			freed = true
		}
	}
	return freed
}

func (x *window) extend(end time.Time) {
	if end.After(x.end) {
		x.end = end
	}
}

func (x *window) over(now time.Time) bool { return x.live == 0 && !now.Before(x.end) }
