package layers

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tiercache/tiercache/internal/broken"
)

// The trust word of a cache: an epoch above two bits. A cell carries the word of its mark without the deaf bit, or with the doubt bit,
// which the cache's own word never has: so a cell is trusted if and only if its word equals the cache's. The epoch has 30 bits: at a
// gap of the bus each second it comes round after 34 years.
const (
	wordDeaf   uint32 = 1 << 0 // of the cache's word: the bus is deaf
	wordDoubt  uint32 = 1 << 1 // of a cell's word: never trusted
	wordShift         = 2
	wordEpoch  uint32 = 1 << wordShift
	wordClosed uint32 = math.MaxUint32
)

const (
	cellBytes = 100 // counted for a cell beside its key and value
	sizeEvery = 64  // of the values of unknown size one in this many is measured
	sizeMean  = 8   // the moving mean moves by this fraction of the difference: an eighth
)

// localOwner is the part of a Local that its cells point to.
type localOwner struct {
	trust atomic.Uint32
	floor atomic.Uint32 // cells of an older epoch are dead
	tail  uintptr       // where a cell's tail stands
}

// shut makes every cell of the cache dead, and every mark void.
func (o *localOwner) shut() {
	o.trust.Store(wordClosed)
	o.floor.Store(math.MaxUint32)
}

// isShut reports whether shut was called.
func (o *localOwner) isShut() bool { return o.trust.Load() == wordClosed }

// move changes the trust word, unless the cache is closed.
func (o *localOwner) move(f func(word uint32) uint32) (uint32, bool) {
	for {
		w := o.trust.Load()
		if w == wordClosed {
			return w, false
		}
		if n := f(w); o.trust.CompareAndSwap(w, n) {
			return n, true
		}
	}
}

// LocalOptions says what a cache's part of a Memory keeps, and how its keys are told apart.
type LocalOptions[K comparable, V any] struct {
	Name    string                 // of the cache; a second open Local of this name on one Memory is an error
	TTL     time.Duration          // a copy is answered for at most this long after its put; zero or negative: nothing is kept, marks still work
	Jitter  float64                // fraction of TTL taken off at random, [0,1); not for pinned keys
	String  func(K) string         // required: a key's string form, which is its identity; events carry it
	Direct  bool                   // K itself is the identity (strings, integers): no String call on a hit
	Parse   func(string) (K, bool) // required with Direct: the string form back to the key; false if no key has it
	SizeOf  func(K, V) int         // optional: bytes of an entry whose encoded size is unknown
	SizeAny func(V) int            // optional: bytes of a value; asked for every 64th of unknown size, as a moving mean
}

func (o *LocalOptions[K, V]) check() error {
	var errs []error
	if o.Name == "" {
		errs = append(errs, errors.New("layers: Name is empty"))
	}
	if o.String == nil {
		errs = append(errs, errors.New("layers: String is nil"))
	}
	if o.Direct && o.Parse == nil {
		errs = append(errs, errors.New("layers: Parse is nil"))
	}
	if !(o.Jitter >= 0 && o.Jitter < 1) {
		errs = append(errs, fmt.Errorf("layers: Jitter is not in [0,1): %v", o.Jitter))
	}
	return errors.Join(errs...)
}

// Local is one cache's part of a Memory: its copies, and the marks that keep older values out. All methods may be called concurrently,
// also while it or its Memory is being closed. None blocks for longer than a stripe's lock is held, which is a few look-ups.
type Local[K comparable, V any] struct {
	own    localOwner
	front  *frontTable
	clock  *coarseClock
	mem    *Memory
	seed   maphash.Seed
	direct bool
	quick  bool // direct, and something is kept: a hit needs nothing but the front
	strict bool // keys of type K can be compared by == without a panic
	text   bool // Direct and of a string kind: its length counts
	o      LocalOptions[K, V]

	sized atomic.Uint64 // values of unknown size so far
	mean  atomic.Int64  // their moving mean
}

// NewLocal opens a cache's part of m. All mistakes of o come in one error.
func NewLocal[K comparable, V any](m *Memory, o LocalOptions[K, V]) (*Local[K, V], error) {
	if m == nil {
		return nil, errors.New("layers: the Memory is nil")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	t := reflect.TypeFor[K]()
	l := &Local[K, V]{
		front:  m.front,
		clock:  m.clock,
		mem:    m,
		seed:   maphash.MakeSeed(), // one a cache, so that equal keys of two caches do not share a hash
		direct: o.Direct,
		quick:  o.Direct && o.TTL > 0,
		strict: strictlyComparable(t),
		text:   o.Direct && t.Kind() == reflect.String,
		o:      o,
	}
	l.own.tail = tailOffset[K, V]()
	if err := m.join(o.Name, &l.own); err != nil {
		return nil, err
	}
	return l, nil
}

// strictlyComparable reports whether == on the type cannot panic: it holds no interface.
func strictlyComparable(t reflect.Type) bool {
	switch t.Kind() { //nolint:exhaustive // the other kinds hold no other type's values
	case reflect.Interface:
		return false
	case reflect.Array:
		return strictlyComparable(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !strictlyComparable(t.Field(i).Type) {
				return false
			}
		}
	}
	return true
}

// Close drops the cache's copies and frees its name. It is idempotent.
func (l *Local[K, V]) Close() { l.mem.leave(l.o.Name, &l.own) }

// State is what Get found.
type State uint8

// What Get can find.
const (
	Miss      State = iota // nothing that may be answered
	Hit                    // a fresh value
	HitAbsent              // fresh knowledge that the source has no such key
)

// Get returns the key's copy if it may be answered without asking anybody: alive, trusted, before its soft end and its own TTL.
// For keys that are their own identity it allocates nothing.
func (l *Local[K, V]) Get(key K) (V, State) {
	if !l.quick {
		return l.getByString(key)
	}
	h := maphash.Comparable(l.seed, key)
	if p := l.front.get(h); p != nil && p.owner == &l.own {
		// The cast is sound: a cell's owner is the localOwner inside the one Local that made it, and a Local[K,V] makes cells of
		// type cell[K,V] only. The head is the cell's first field, and the pointer keeps the whole cell alive.
		c := (*cell[K, V])(unsafe.Pointer(p))
		if s := c.state.Load(); s&stateDead == 0 && c.key == key {
			return l.answer(c, s)
		}
	}
	return l.getStored(h, key, "")
}

func (l *Local[K, V]) getByString(key K) (v V, found State) {
	if l.o.TTL <= 0 {
		return v, Miss
	}
	id := l.o.String(key)
	h := maphash.String(l.seed, id)
	if c := l.mine(l.front.get(h), h, key, id); c != nil {
		if s := c.state.Load(); s&stateDead == 0 {
			return l.answer(c, s)
		}
	}
	return l.getStored(h, key, id)
}

// getStored is Get where the front does not know the key.
func (l *Local[K, V]) getStored(h uint64, key K, id string) (v V, found State) {
	c, stored := l.find(h, key, id)
	if c == nil {
		return v, Miss
	}
	v, found = l.answer(c, c.state.Load())
	if stored && found != Miss {
		l.front.offer(h, &c.cellHead, uint64(l.clock.edge.Load())>>frontTurn)
	}
	return v, found
}

// answer judges a live cell of the key.
func (l *Local[K, V]) answer(c *cell[K, V], state uint32) (v V, found State) {
	if c.trust != l.own.trust.Load() || !l.clock.before(c.fresh) {
		return v, Miss
	}
	c.use(state)
	if state&stateAbsent != 0 {
		return v, HitAbsent
	}
	return c.value, Hit
}

// find returns the key's newest cell, nil if it has none alive, and whether ristretto has it.
//
// A live cell met anywhere is the newest: a put kills the older one before anybody can see the newer. That ristretto has none alive says
// nothing: a put of before may be in the overlay. That the overlay has none says nothing either, once ristretto was asked without the lock:
//  1. a reader asks ristretto: nothing yet
//  2. the flusher's change is applied there, and taken off the overlay
//  3. the reader looks at the overlay: nothing any more
//
// Hence both are asked again under the stripe's lock, without which nothing is taken off.
func (l *Local[K, V]) find(h uint64, key K, id string) (c *cell[K, V], stored bool) {
	if l.o.TTL <= 0 {
		return nil, false
	}
	if c := l.mine(l.mem.stored(h), h, key, id); c != nil && c.alive() {
		return c, true
	}
	s := l.mem.stripe(h)
	s.mu.Lock()
	p := l.mem.currentLocked(s, h)
	s.mu.Unlock()
	if c := l.mine(p, h, key, id); c != nil && c.alive() { // not under the lock: it may call the user's String
		return c, false
	}
	return nil, false
}

// mine returns the cell if it is this cache's, of this key.
func (l *Local[K, V]) mine(p *cellHead, h uint64, key K, id string) *cell[K, V] {
	if p == nil || p.owner != &l.own {
		return nil
	}
	c := (*cell[K, V])(unsafe.Pointer(p)) // sound: see Get
	switch {
	case l.direct:
		if c.key == key {
			return c
		}
	case c.t.hash != h:
	case l.strict && c.key == key || l.o.String(c.key) == id:
		return c
	}
	return nil
}

// hash returns the key's hash, and its string form where that is its identity.
func (l *Local[K, V]) hash(key K) (uint64, string) {
	if l.direct {
		return maphash.Comparable(l.seed, key), ""
	}
	id := l.o.String(key)
	return maphash.String(l.seed, id), id
}

// Mark returns this moment in the key's local history.
//
// The two words are read one after the other: what moves between the reads either makes the mark void (the epoch) or happened before
// the moment that the mark stands for (the trust word).
func (l *Local[K, V]) Mark(key K) Mark {
	h, _ := l.hash(key)
	return Mark{epoch: l.mem.stripe(h).epoch.Load(), trust: uint64(l.own.trust.Load())}
}

// Stands reports whether nothing that voids the mark has happened since.
func (l *Local[K, V]) Stands(key K, m Mark) bool {
	h, _ := l.hash(key)
	return l.stands(l.mem.stripe(h), m)
}

func (l *Local[K, V]) stands(s *memStripe, m Mark) bool {
	if broken.Left(broken.Mark) {
		return true
	}
	return m.trust != uint64(wordClosed) && m.epoch == s.epoch.Load() && m.trust == uint64(l.own.trust.Load())
}

// Put keeps a copy, if the mark still stands. It returns false, and keeps nothing, if it does not, if the entry is past its hard end, if the
// cache or its Memory is closed or keeps nothing, if the entry is larger than an eighth of the Memory, and if too many puts have not
// reached the store yet; in the last two cases an older copy goes as well. After true the next Get finds it, unless it was evicted.
func (l *Local[K, V]) Put(key K, e Entry[V], m Mark) bool {
	return l.put(key, &e, m, false, false, true)
}

// PutDoubtful is Put of a copy that is never trusted: only Look finds it.
func (l *Local[K, V]) PutDoubtful(key K, e Entry[V], m Mark) bool {
	return l.put(key, &e, m, true, false, true)
}

// Replace kills the key's copy as Bump does and, if put is set and the mark stood until then, puts the entry, all under one lock.
// It reports whether the entry was put.
func (l *Local[K, V]) Replace(key K, e Entry[V], m Mark, put bool) bool {
	return l.put(key, &e, m, false, true, put)
}

// put is Put, PutDoubtful and Replace. The user's functions are called before the lock is taken.
func (l *Local[K, V]) put(key K, e *Entry[V], m Mark, doubt, bump, keep bool) bool {
	keep = keep && l.o.TTL > 0
	if !keep && !bump {
		return false
	}
	h, id := l.hash(key)
	var c *cell[K, V]
	if keep {
		c = l.cellOf(h, key, id, e, m, doubt)
	}
	if c == nil && !bump {
		return false
	}
	var room [8]*cellHead
	s := l.mem.stripe(h)
	s.mu.Lock()
	stood := l.stands(s, m) && !l.mem.closed.Load()
	kept, victims := false, room[:0]
	switch {
	case c != nil && stood:
		if bump {
			s.epoch.Add(1)
		}
		kept, victims = l.mem.putLocked(s, &c.cellHead, victims) // kills the older cell in any case
	case bump:
		l.mem.bumpLocked(s, h)
	}
	s.mu.Unlock()
	l.mem.kick()
	if len(victims) > 0 {
		l.mem.bury(victims)
	}
	if kept {
		l.mem.wake()
	}
	return kept
}

// cellOf makes the cell of an entry; nil if the entry is past its hard end.
func (l *Local[K, V]) cellOf(h uint64, key K, id string, e *Entry[V], m Mark, doubt bool) *cell[K, V] {
	now := l.clock.now()
	if now >= l.clock.since(e.Hard) {
		return nil
	}
	life := l.o.TTL
	if !l.mem.policy.isPinned(h) { // a hot key is read anew as seldom as allowed; there are too few of them to end together
		life = Shorten(life, l.o.Jitter, rand.Float64())
	}
	c := newCell(l.clock, &l.own, h, key, e, now, now+int64(life))
	c.trust = uint32(m.trust)
	if doubt || c.trust&wordDeaf != 0 {
		c.trust = c.trust&^wordDeaf | wordDoubt
	}
	// A cell has its key and value in it, be they zero: what is absent costs no less than that.
	c.bytes = uint32(min(max(l.size(key, id, e), int64(unsafe.Sizeof(*c))), math.MaxUint32))
	return c
}

// size returns the bytes that are counted for an entry.
func (l *Local[K, V]) size(key K, id string, e *Entry[V]) int64 {
	size := int64(cellBytes + len(id))
	if l.text {
		size += int64(len(l.o.String(key)))
	}
	switch {
	case e.Size > 0:
		size += countable(e.Size)
	case e.Absent:
	case l.o.SizeOf != nil:
		size += countable(l.o.SizeOf(key, e.Value))
	case l.o.SizeAny != nil:
		size += l.meanSize(e.Value)
	}
	return size
}

// countable is a size within what a cell can count: what SizeOf says may be anything, up to where a sum with it would overflow.
func countable(size int) int64 { return min(max(int64(size), 0), math.MaxUint32) }

// meanSize returns the moving mean of the sizes of values, of which every 64th is measured.
func (l *Local[K, V]) meanSize(v V) int64 {
	n := l.sized.Add(1)
	mean := l.mean.Load()
	if n%sizeEvery != 1 {
		return mean
	}
	size := countable(l.o.SizeAny(v))
	if n == 1 {
		mean = size
	} else {
		mean += (size - mean) / sizeMean
	}
	l.mean.Store(mean)
	return mean
}

// Bump moves the key's history on and kills its copy: marks taken before are void, and the copy is never answered again.
func (l *Local[K, V]) Bump(key K) {
	h, _ := l.hash(key)
	l.bump(h)
}

// BumpID is Bump for a key's string form, as events carry it. A string that is no key's form does nothing.
func (l *Local[K, V]) BumpID(id string) {
	if !l.direct {
		l.bump(maphash.String(l.seed, id))
	} else if key, ok := l.o.Parse(id); ok {
		l.Bump(key)
	}
}

func (l *Local[K, V]) bump(h uint64) {
	s := l.mem.stripe(h)
	s.mu.Lock()
	l.mem.bumpLocked(s, h)
	s.mu.Unlock()
	l.mem.kick()
}

// Deaf says that events may be missed from now on: nothing is trusted, nor what is put meanwhile.
func (l *Local[K, V]) Deaf() {
	l.own.move(func(w uint32) uint32 { return w | wordDeaf })
}

// Hear says that events are heard again: what is put from now on is trusted, older copies are not.
func (l *Local[K, V]) Hear() {
	l.own.move(func(w uint32) uint32 { return (w + wordEpoch) &^ wordDeaf })
}

// Drop makes every copy dead for good, and voids every mark taken before.
func (l *Local[K, V]) Drop() {
	w, open := l.own.move(func(w uint32) uint32 { return w + wordEpoch })
	if !open {
		return
	}
	floor := w >> wordShift
	for {
		old := l.own.floor.Load()
		if old >= floor || l.own.floor.CompareAndSwap(old, floor) {
			return
		}
	}
}
