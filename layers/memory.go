package layers

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/dgraph-io/ristretto/v2"
)

const (
	defaultMaxBytes = 64 << 20
	stripeCount     = 256 // Chosen: as many as ristretto has shards.

	sweepEvery = 10  // ticks
	sweepPass  = 200 // sweeps that see every cell once: 10 s. Chosen; not tuned.
	sweepLeast = 64  // cells a sweep looks at, at least

	// heldShare and heldLeast bound the bytes of dead cells that wait to be taken off ristretto: an eighth of the bytes, or 1 MiB. Beyond it puts
	// are dropped. Chosen; not tuned.
	heldShare = 8
	heldLeast = 1 << 20

	// entryShare is the largest fraction of the bytes that one entry may take: an eighth.
	entryShare = 8
)

// MemoryOptions says how large a Memory may grow.
type MemoryOptions struct {
	MaxBytes int64 // of all entries of all its caches, as far as their sizes are known; 0: 64 MiB; negative is an error
}

// MemoryStats counts what a Memory has and did.
type MemoryStats struct {
	Bytes   uint64 // counted for the entries it has
	Entries uint64
	Evicted uint64 // entries that went for space
	Expired uint64 // entries found past their hard end, or of a cache that was dropped or closed
	Refused uint64 // puts of entries larger than an eighth of MaxBytes
	Dropped uint64 // puts dropped because too many had not reached the store yet; an older entry of the key went with them
	Lost    uint64 // entries that the store did not keep; 0 as far as we know it

	// The first four numbers by region; together they are those above. New values stand in Window; what is asked for goes on to Main. Absent
	// entries never have more than a tenth of MaxBytes nor than 100,000 entries, and beyond a hundredth only what values leave free. The entries
	// of pinned keys, also absent ones, stand in Pinned, where nothing is evicted.
	Window, Main, Absent, Pinned RegionStats

	Pins uint64 // pinned keys, with an entry or without one
}

// RegionStats counts what a region of a Memory has, and what went from there.
type RegionStats struct {
	Bytes, Entries, Evicted, Expired uint64 // as in MemoryStats
}

// Memory is the local tier: entries of this process, for many caches, within one bound of bytes. Open a cache's part of it with NewLocal.
// All methods may be called concurrently.
//
// Ristretto stores, and decides nothing: it never has a reason to refuse or evict. What stays is decided by evictPolicy; what is
// answered is decided by the cells themselves, because ristretto applies a Set some time after it was asked to and may keep the older of
// two. Two rules make that sound:
//
//   - A cell dies once, and for good: when it is superseded, killed, evicted or expired. A dead cell is never answered, wherever it is met.
//   - Only the flusher changes what ristretto has. A put or a kill writes what it wants into the overlay of the key's stripe, under the
//     stripe's lock; the flusher carries that to ristretto, waits until it is applied, and only then takes it off the overlay. So the
//     newest cell of a key is in the overlay, or else in ristretto; never is a second change of a key under way there.
//
// Lock order: a stripe's lock, then the policy's. Nothing is sent to ristretto under either, since its queue can block.
type Memory struct {
	maxBytes int64
	store    *ristretto.Cache[uint64, *cellHead]
	policy   *evictPolicy
	front    *frontTable
	clock    *coarseClock
	stripes  *[stripeCount]memStripe
	readers  *readerCount
	closed   atomic.Bool
	_        [64]byte // what a hit reads stands apart from what a put writes

	dirty atomic.Bool   // the flusher was kicked and has not begun to look yet
	kicks chan struct{} // to the flusher
	idle  atomic.Bool   // the clock is parked
	wakes chan struct{} // to the ticker
	done  chan struct{}
	once  sync.Once
	wait  sync.WaitGroup

	held                   atomic.Int64 // bytes of dead cells that ristretto may still hold
	refused, dropped, lost atomic.Uint64

	mu     sync.Mutex
	owners map[string]*localOwner
}

// readerCount counts the calls that may be inside ristretto. A reader counts in a part chosen by where its stack is: so one goroutine stays
// with one part, and two seldom share one.
type readerCount [64]struct {
	n atomic.Int64
	_ [56]byte
}

func (r *readerCount) here() *atomic.Int64 {
	var local byte
	return &r[uintptr(unsafe.Pointer(&local))>>11%uintptr(len(r))].n
}

// drain waits until nobody is inside. A reader's stay is one look-up.
func (r *readerCount) drain() {
	for i := range r {
		for r[i].n.Load() > 0 {
			time.Sleep(10 * time.Microsecond)
		}
	}
}

// NewMemory makes a Memory. Close it after its caches.
func NewMemory(o MemoryOptions) (*Memory, error) {
	if o.MaxBytes < 0 {
		return nil, fmt.Errorf("layers: MaxBytes is negative: %d", o.MaxBytes)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	store, err := ristretto.NewCache(&ristretto.Config[uint64, *cellHead]{
		NumCounters:            1 << 10, // it never evicts, so it needs no frequencies
		MaxCost:                math.MaxInt64 / 4,
		BufferItems:            64,
		IgnoreInternalCost:     true,
		KeyToHash:              func(h uint64) (uint64, uint64) { return h, 0 },
		TtlTickerDurationInSec: 1 << 20, // it knows no TTLs
	})
	if err != nil {
		return nil, fmt.Errorf("layers: the local tier's store: %w", err)
	}
	m := &Memory{
		maxBytes: o.MaxBytes,
		store:    store,
		front:    newFront(o.MaxBytes),
		clock:    newCoarseClock(),
		stripes:  new([stripeCount]memStripe),
		readers:  new(readerCount),
		kicks:    make(chan struct{}, 1),
		wakes:    make(chan struct{}, 1),
		done:     make(chan struct{}),
		owners:   make(map[string]*localOwner),
	}
	m.policy = newEvictPolicy(o.MaxBytes, m.clock)
	for i := range m.stripes {
		m.stripes[i].overlay = make(map[uint64]wanted)
	}
	m.idle.Store(true)
	m.wait.Go(m.flusher)
	m.wait.Go(m.ticker)
	return m, nil
}

// Close drops everything and ends the Memory's goroutines. Calls of its caches under way are safe; later ones find nothing and keep
// nothing. It is idempotent and never fails.
func (m *Memory) Close() error {
	m.once.Do(func() {
		m.closed.Store(true)
		m.mu.Lock()
		for _, o := range m.owners {
			o.shut()
		}
		m.mu.Unlock()
		close(m.done)
		m.wait.Wait()
		for i := range m.stripes {
			s := &m.stripes[i]
			s.mu.Lock() // who takes the lock after us sees closed
			clear(s.overlay)
			s.cells = 0
			s.mu.Unlock()
		}
		m.readers.drain()
		m.store.Close()
		m.policy.removeAll()
		m.front.clear()
	})
	return nil
}

// Stats returns the counters of this moment.
func (m *Memory) Stats() MemoryStats {
	p := m.policy
	p.mu.Lock()
	defer p.mu.Unlock()
	st := MemoryStats{
		Bytes:   uint64(p.used),
		Entries: uint64(p.count),
		Refused: m.refused.Load(),
		Dropped: m.dropped.Load(),
		Lost:    m.lost.Load(),
		Window:  p.window.stats(),
		Main:    p.main.stats(),
		Absent:  p.aside.stats(),
		Pinned:  p.pinned.stats(),
		Pins:    uint64(len(p.pins.owners)),
	}
	for _, r := range p.regions() {
		st.Evicted += r.evicted
		st.Expired += r.expired
	}
	return st
}

// join opens a cache's part.
func (m *Memory) join(name string, o *localOwner) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed.Load() {
		return errors.New("layers: the Memory is closed")
	}
	if _, taken := m.owners[name]; taken {
		return fmt.Errorf("layers: a cache named %q is open on this Memory", name)
	}
	m.owners[name] = o
	return nil
}

// leave gives the name free and drops the cache's cells.
func (m *Memory) leave(name string, o *localOwner) {
	o.shut()
	m.mu.Lock()
	if m.owners[name] == o {
		delete(m.owners, name)
	}
	m.mu.Unlock()
	m.policy.unpinAll(o)
	m.sweepOver()
}

func (m *Memory) stripe(hash uint64) *memStripe { return &m.stripes[hash>>56] }

// stored returns what ristretto has for the hash, dead or alive. Readers are counted, so that Close never ends ristretto under one:
// either the reader sees closed, or Close sees the reader.
func (m *Memory) stored(hash uint64) *cellHead {
	n := m.readers.here()
	n.Add(1)
	if m.closed.Load() {
		n.Add(-1)
		return nil
	}
	c, _ := m.store.Get(hash)
	n.Add(-1)
	return c
}

// currentLocked returns the newest cell of the hash, dead only if it was evicted and not taken off yet. The caller holds the stripe's lock.
func (m *Memory) currentLocked(s *memStripe, hash uint64) *cellHead {
	if w, ok := s.overlay[hash]; ok {
		return w.cell
	}
	return m.stored(hash)
}

// putLocked makes c the newest cell of its hash, whatever key stood there, and appends what had to go for it to victims. The older cell
// dies even if c is not kept. The caller holds the stripe's lock and has compared the mark under it.
func (m *Memory) putLocked(s *memStripe, c *cellHead, victims []*cellHead) (bool, []*cellHead) {
	hash := c.tail().hash
	old := m.currentLocked(s, hash)
	switch {
	case int64(c.bytes) > m.maxBytes/entryShare:
		m.refused.Add(1)
	case s.cells >= overlayStripe || m.held.Load() > max(m.maxBytes/heldShare, heldLeast):
		m.dropped.Add(1)
	default:
		if old != nil {
			old.state.Or(stateDead)
			m.front.forget(old)
			victims = m.policy.replace(old, c, victims)
		} else {
			victims = m.policy.add(c, victims)
		}
		m.wantLocked(s, hash, c, old)
		return true, victims
	}
	if old != nil {
		m.killLocked(s, old)
	}
	return false, victims
}

// bumpLocked moves the stripe's epoch and kills what stands under the hash: another key there, a one in 2^64 chance, goes as well. The
// caller holds the stripe's lock.
func (m *Memory) bumpLocked(s *memStripe, hash uint64) {
	s.epoch.Add(1)
	if c := m.currentLocked(s, hash); c != nil {
		m.killLocked(s, c)
	}
}

// killLocked kills a current cell and wants nothing in its place. The caller holds the stripe's lock.
func (m *Memory) killLocked(s *memStripe, c *cellHead) {
	c.state.Or(stateDead)
	m.front.forget(c)
	m.policy.remove(c)
	m.wantLocked(s, c.tail().hash, nil, c)
}

// bury takes cells that the policy evicted off the store. They are dead already: until then they are only in the way. The caller holds no lock.
func (m *Memory) bury(victims []*cellHead) {
	for _, v := range victims {
		m.front.forget(v)
		hash := v.tail().hash
		s := m.stripe(hash)
		s.mu.Lock()
		if !m.closed.Load() && m.currentLocked(s, hash) == v {
			m.wantLocked(s, hash, nil, v)
		}
		s.mu.Unlock()
	}
	m.kick()
}

// wake lets the clock tick again.
func (m *Memory) wake() {
	if !m.idle.Load() {
		return
	}
	select {
	case m.wakes <- struct{}{}:
	default:
	}
}

// ticker moves the coarse clock and sweeps, while there are entries.
func (m *Memory) ticker() {
	t := time.NewTicker(clockTick)
	defer t.Stop()
	for {
		t.Stop()
		m.clock.park()
		m.idle.Store(true)
		if m.policy.entries() == 0 {
			select {
			case <-m.done:
				return
			case <-m.wakes:
			}
		}
		m.idle.Store(false)
		m.clock.resume()
		t.Reset(clockTick)
		if !m.tickUntilEmpty(t.C) {
			return
		}
	}
}

// tickUntilEmpty ticks while there are entries. It returns false once the Memory is closed.
func (m *Memory) tickUntilEmpty(ticks <-chan time.Time) bool {
	var victims []*cellHead
	for n := 1; ; n++ {
		select {
		case <-m.done:
			return false
		case <-ticks:
		}
		now := m.clock.tick()
		if n%sweepEvery != 0 {
			continue
		}
		count := m.policy.entries()
		if count == 0 {
			return true
		}
		victims = m.policy.sweep(max(int(count/sweepPass), sweepLeast), now, victims[:0])
		m.bury(victims)
		clear(victims)
	}
}

// sweepOver removes every cell that is over, in steps.
func (m *Memory) sweepOver() {
	const step = 1024
	count := m.policy.entries()
	m.policy.rewind()
	var victims []*cellHead
	for ; count > 0; count -= step {
		victims = m.policy.sweep(step, m.clock.now(), victims[:0])
		m.bury(victims)
	}
}
