package layers

import (
	"context"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/internal/rediskey"
)

// Copies of a value in other slots of a Cluster: reads of one key that many processes ask for are then not all one master's.
//
// What stands at the key itself is what counts; a copy is what stood there a moment ago, byte by byte. Whoever changes the value drops its
// copies before the call returns. That there may be any is said by a note beside the value, so that a change of another key costs nothing more.
//
//	who copies                                  who changes the value
//	1 takes the copy's lease                    a the script that changes it also reads the note
//	2 leaves the note and reads the value       b if there is one: drops each copy and its lease, and tells of it
//	3 stores the copy, if the lease stands
//
// a before 2: there may be no note, and nothing is dropped; but 2 reads what a has left. 2 before a: the note is found, and b follows. Of these,
// 3 before b: the copy is dropped. 1 before b before 3: the lease is gone, 3 is refused. b before 1: so was a, and 2 reads what it left.
//
// The event of an invalidation is heard before its copies are gone. A hearer that reads one and keeps it hears of it again: each drop tells of the
// key with the deletion.
//
// Two things can leave a copy that is out of date: a note that Redis lost (evicted, or not yet at the replica that took over), and a deletion that a
// failover took back. Hence copyLife.
const (
	// MaxCopies bounds the copies of one value. Chosen; not tuned.
	MaxCopies = 16
	// copyLife is how long a copy stands at most: so long is one answered that nobody can drop. Each is made anew as often. Chosen; not tuned.
	copyLife = 5 * time.Second
	// copyLease is how long the three steps may take together.
	copyLease = 2 * time.Second
	// noteLife outlives every copy that was leased before the note was left: those end a lease and a life after that. The last second is for
	// the drift of the servers' clocks.
	noteLife = copyLease + copyLife + time.Second
	// copyPause is how long a process leaves a copy alone that it could not make. Chosen; not tuned.
	copyPause = 100 * time.Millisecond
	// copyNames is how many names are tried for one that lies where the copy should. Chosen; not tuned: a name is within a hundredth of it, mostly.
	copyNames = 64
)

// copies are the keys that a Space reads from copies.
type copies struct {
	spread atomic.Pointer[map[string]*spreadKey] // by id; copied on write; nil: none
	which  uint32                                // of this process: which copy it reads
	reads  atomic.Uint64
	made   atomic.Uint64
}

// spreadKey is one of these keys, of which this process reads one copy.
type spreadKey struct {
	id     string
	n      int    // copies in the fleet
	key    string // of the copy
	making atomic.Bool
	rests  atomic.Int64 // Unix ns; it is not made before
}

// CopyStats count what a Space did with copies since it was opened.
type CopyStats struct {
	Reads uint64 // reads that a copy answered
	Made  uint64 // copies that were stored
}

// Spread has ReadSpread read the key from one of n copies of its value in other slots, and makes that copy where it is missing; n of zero or less: no
// longer; more than MaxCopies: as many. Which copy, or the value itself, is chosen at random for each process and key. Outside of a Cluster it
// does nothing. It asks nobody; calls must come one at a time.
func (s *Space) Spread(id string, n int) {
	if s.r.cluster == nil {
		return
	}
	all := make(map[string]*spreadKey)
	if old := s.copies.spread.Load(); old != nil {
		maps.Copy(all, *old)
	}
	delete(all, id)
	n = min(n, MaxCopies)
	if n > 0 {
		if i := int((tableHash(id) ^ s.copies.which) % uint32(n+1)); i > 0 { //nolint:gosec // small
			all[id] = &spreadKey{id: id, n: n, key: s.copyKey(id, i)}
		}
	}
	if len(all) == 0 {
		s.copies.spread.Store(nil)
		return
	}
	s.copies.spread.Store(&all)
}

// CopyStats may be called at any time.
func (s *Space) CopyStats() CopyStats {
	return CopyStats{Reads: s.copies.reads.Load(), Made: s.copies.made.Load()}
}

// noteKey is where the note stands that there are copies of the value at key, in its slot.
func noteKey(key string) string { return key + ":c" }

// copyLeaseKey is where the lease of a copy stands, in its slot.
func copyLeaseKey(key string) string { return key + ":l" }

// noted are the keys of a script that changes the value at key: in a Cluster with the note.
func (s *Space) noted(key string) []string {
	if s.r.cluster == nil {
		return []string{key, guardKey(key)}
	}
	return []string{key, guardKey(key), noteKey(key)}
}

// copyKey is the key of copy i, from 1 on: <prefix>:<name>:{<key>:<number>}. Its slot is near the value's plus i golden sections of all slots, which
// spreads few copies well over masters that have a range of slots each; whatever their number, so that processes with different ones agree.
func (s *Space) copyKey(id string, i int) string {
	const slots, golden = 1 << 14, 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	tag := rediskey.Tag(id) + ":"
	want := slotOf(s.before+rediskey.Tag(id)+"}") + uint16(uint64(i)*golden>>50) //nolint:gosec // modulo the slots, below
	best, least := 0, uint16(slots)
	for try := range copyNames {
		at := slotOf("{" + tag + strconv.Itoa(i*copyNames+try) + "}")
		away := (at - want) % slots
		if away = min(away, slots-away); away < least {
			best, least = i*copyNames+try, away
		}
	}
	return s.before + tag + strconv.Itoa(best) + "}"
}

// ReadSpread is Read, from a copy if there is one for this process and it is fresh. Where there is none, it is two round trips, and the copy is
// made behind the caller's back. A copy may be older than what Read returns, by no more than it takes to drop it.
func (s *Shared[V]) ReadSpread(ctx context.Context, id string, m Mark, r *Reading[V]) error {
	all := s.copies.spread.Load()
	if all == nil {
		return s.Read(ctx, id, m, r)
	}
	k := (*all)[id]
	if k == nil {
		return s.Read(ctx, id, m, r)
	}
	if s.readCopy(ctx, k, m, r) {
		s.copies.reads.Add(1)
		return nil
	}
	*r = Reading[V]{}
	if err := s.Read(ctx, id, m, r); err != nil {
		return err
	}
	if r.Kind == Value && !r.Absent && r.Fresh(time.Now()) {
		s.makeCopy(k)
	}
	return nil
}

// readCopy reports whether the copy is there and fresh. What is wrong with it or its master is not the caller's trouble: the value itself is asked.
func (s *Shared[V]) readCopy(ctx context.Context, k *spreadKey, m Mark, r *Reading[V]) bool {
	if _, err := s.known(ctx); err != nil {
		return false
	}
	q, err := s.r.get(ctx, k.key, m)
	if err != nil {
		return false
	}
	s.reading(ctx, k.id, q, r)
	return r.Kind == Value && !r.Absent && r.Fresh(time.Now())
}

// makeCopy begins to make the copy, unless that is under way here or was tried just now.
func (s *Space) makeCopy(k *spreadKey) {
	if time.Now().UnixNano() < k.rests.Load() || !k.making.CompareAndSwap(false, true) {
		return
	}
	if !s.r.spawn(func() {
		defer k.making.Store(false)
		if s.leaseCopy(k).noted().stored() {
			s.copies.made.Add(1)
		} else {
			k.rests.Store(time.Now().Add(copyPause).UnixNano())
		}
	}) {
		k.making.Store(false)
	}
}

// copying is a copy under way: its steps are called in order, and each does nothing once one before it did not succeed.
type copying struct {
	s     *Space
	k     *spreadKey
	token Token
	raw   string
	life  time.Duration
	ok    bool
}

// step sends one step. Nobody waits for it: it has its budget.
func (c *copying) step(keys []string, args ...any) scriptReply {
	call := &scriptCall{script: copyScript, keys: keys, args: args}
	c.s.r.eval(context.Background(), call)
	a, err := call.read()
	c.ok = err == nil && a.code == 1
	return a
}

// leaseCopy is step 1.
func (s *Space) leaseCopy(k *spreadKey) *copying {
	c := &copying{s: s, k: k, token: NewToken()}
	c.step([]string{k.key, copyLeaseKey(k.key)}, "lease", string(c.token), millis(copyLease))
	return c
}

// noted is step 2. Only what is fresh, is a row, and covers no announcement is worth a copy.
func (c *copying) noted() *copying {
	if !c.ok {
		return c
	}
	key, err := c.s.valueKey(c.k.id)
	if err != nil {
		c.ok = false
		return c
	}
	a := c.step([]string{key, noteKey(key)}, "note", c.k.n, millis(noteLife))
	var e envelope
	if c.raw = a.text(2); c.ok {
		c.ok = e.parse(c.raw) == nil && e.flags&(flagAbsent|flagMarker) == 0 && e.generation == c.s.generation.Load() && a.now < e.soft
	}
	c.life = min(a.until(e.soft), copyLife)
	return c
}

// stored is step 3, and reports whether the copy stands.
func (c *copying) stored() bool {
	if c.ok {
		c.step([]string{c.k.key, copyLeaseKey(c.k.key)}, "store", string(c.token), c.raw, millis(c.life))
	}
	return c.ok
}

// dropCopies deletes the first n[i] copies of each id, and tells of those ids if tell is set. One round trip a master, none where all n are 0.
// The errors are per id.
func (s *Space) dropCopies(ctx context.Context, tell bool, ids []string, n []int) []error {
	errs := make([]error, len(ids))
	var calls []*scriptCall
	var of []int
	for i, id := range ids {
		for copied := 1; copied <= min(n[i], MaxCopies); copied++ {
			key, event := s.copyKey(id, copied), ""
			if tell {
				event = s.r.bus.event(s, eventInvalidated, id)
			}
			calls = append(calls, &scriptCall{script: copyScript, keys: []string{key, copyLeaseKey(key)}, args: []any{"drop", s.channel, event}})
			of = append(of, i)
		}
	}
	if len(calls) == 0 {
		return errs
	}
	s.r.eval(ctx, calls...)
	for j, call := range calls {
		if _, err := call.read(); err != nil {
			errs[of[j]] = err
		}
	}
	return errs
}
