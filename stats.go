package tiercache

import (
	"sync/atomic"
	"unsafe"

	"github.com/tiercache/tiercache/rebuild"
)

// Stats are the counts of one cache since New; the last group are gauges of this moment. Reading them costs a few dozen atomic loads.
type Stats struct {
	MemoryHits  uint64 // answered from memory, fresh
	SharedHits  uint64 // answered from Redis, fresh
	AbsentHits  uint64 // "not found" answered from memory or Redis
	Filtered    uint64 // "not found" answered by the filter
	FilterAsked uint64 // times the filter was asked
	FilterOpen  uint64 // of these, while it was in no state to answer: everything passed
	FilterAudit uint64 // of these, it said "absent" and the key was loaded all the same
	FilterWrong uint64 // rows of the source that it called absent: false negatives. Each makes the fleet let everything pass until another is built
	InvalidKeys uint64 // refused by ValidKey, of whatever call
	Misses      uint64 // neither tier had an answer
	Coalesced   uint64 // callers that waited for another caller's rebuild

	Loads        uint64 // calls of the loader; one LoadMany call counts once
	LoadedKeys   uint64 // keys asked of the loader
	LoadErrors   uint64 // calls that failed, ErrNotFound aside
	LoadPanics   uint64 // of these, by a panic or runtime.Goexit
	LoadsRefused uint64 // loaded values that Redis refused: invalidated meanwhile, or the lease was lost
	StaleServed  uint64 // answers past their soft end
	StaleErrors  uint64 // of these, because the rebuild failed
	Shed         uint64 // rebuilds that the gate turned away
	FirstMisses  uint64 // keys found absent of which Redis keeps nothing: see Options.AbsentMisses
	AbsentShed   uint64 // loads among these, of keys that likely have no row, while such loads take more than their share of the gate
	BackOffs     uint64 // rebuilds refused since the last loads of the key failed

	RefreshesAhead uint64 // loads of hot keys before their value's soft end
	CopyReads      uint64 // reads of hot keys that a copy in another slot answered: Options.HotCopies
	CopiesMade     uint64 // copies that this process stored

	BreakerRefused     uint64 // rebuilds that the source's breaker turned away
	SourceBreakerTrips uint64 // times that it opened
	RedisBreakerTrips  uint64 // times that the breaker around a Redis master opened, for all caches that share the layers.Redis

	SharedErrors uint64 // calls of Redis that failed or ran out of their budget
	EncodeErrors uint64 // values that could not be encoded or were too large: kept in memory only
	DecodeErrors uint64 // reads of an entry in Redis that could not be understood; it is rebuilt
	BusGaps      uint64 // times events may have been missed, and memory was asked again

	Invalidations uint64 // keys invalidated by calls in this process
	Events        uint64 // keys invalidated by other processes
	Failovers     uint64 // times Redis may have lost what it had acknowledged: another server, a restart, a flush
	Replayed      uint64 // keys invalidated again after that

	SourceBreaker uint64 // gauge: 0 closed, 1 half-open (three loads at a time, to see), 2 open
	RedisBreaker  uint64 // gauge: of the worst master: 0 closed, 1 half-open (reads come back, key by key), 2 open (it is not read)
	Pending       uint64 // gauge: keys whose invalidation waits for Redis, or is to be repeated after a failover
	LoadsRunning  uint64 // gauge: loads in this process
	LoadsWaiting  uint64 // gauge: rebuilds that wait at the gate
	AbsentFlood   uint64 // gauge: 1 while loads that find nothing take more than their share of the gate, else 0

	// ColdStartFactor is a gauge, in hundredths: requests a second over the keys a second that the source can be asked for (the gate's slots
	// over what a key takes in one), as both were in the last ten seconds or since Stats was called last, if nothing was loaded. Above 100 this
	// process could not serve its traffic from an empty cache: after a flush callers would be turned away until enough is loaded. 0 while nothing
	// was loaded yet. Callers who share another's rebuild do not count.
	ColdStartFactor uint64

	MemoryBytes   uint64 // gauge: what the memory holds, of all caches that share it
	MemoryEntries uint64 // gauge: entries of the memory, of all caches that share it
	FilterRows    uint64 // gauge: rows in the filter; 0 where none is built; of one in Redis, those of the scan it was built from
	HotKeys       uint64 // gauge: keys that are hot in this process, 256 at most
	HotPinned     uint64 // gauge: keys that are pinned in the memory, of all caches that share it
	FilterSize    uint64 // gauge: rows the filter was made for; those asked for where none is built
	FilterBytes   uint64 // gauge: of its bits and of what was added since
	FilterFill    uint64 // gauge: bits that are set, in millionths; half a million at FilterSize
	FilterRate    uint64 // gauge: absent keys that pass by now, in millionths
	FilterState   uint64 // gauge: 0 none was built, 1 believed, 2 lagging, 3 doubted: bloom.State; everything passes but at 1
	FilterDue     uint64 // gauge: 1 if a new one should be built: Hooks.Filter says why

	FilterSegments uint64 // gauge: segments of the filter in Redis; 0 where none is built or there is no such
	FilterUnknown  uint64 // gauge: of these, the ones that said nothing when last asked: their keys pass, a new build is due
}

// counters are the counts behind Stats. The count of memory hits is striped, since one shared word would be the slowest thing of a hit.
type counters struct {
	memoryHits striped
	sharedHits striped // of many callers at once: what one batch brought

	filterChecks, filterOpen, filterAudits, filterWrong                      atomic.Uint64
	absentHits, filtered, invalidKeys, misses, coalesced                     atomic.Uint64
	loads, loadedKeys, loadErrors, loadPanics, loadsRefused, firstMisses     atomic.Uint64
	timedKeys, loadTime                                                      atomic.Uint64 // for the burden; nanoseconds
	staleServed, staleErrors, shed, backOffs                                 atomic.Uint64
	refreshesAhead                                                           atomic.Uint64
	sharedErrors, encodeErrors, decodeErrors, busGaps, invalidations, events atomic.Uint64
	failovers, replayed                                                      atomic.Uint64
}

// striped is a counter that many processors raise without sharing a cache line.
type striped [16]struct {
	n atomic.Uint64
	_ [56]byte
}

// add raises the counter by one and returns what it is now on the caller's stripe. The stripe is chosen by the address of the caller's stack: goroutines have stacks of their own, of 2 KiB
// at least, so those that run at once mostly meet different stripes.
func (s *striped) add() uint64 {
	var here byte
	return s[uintptr(unsafe.Pointer(&here))>>11%uintptr(len(s))].n.Add(1) //nolint:gosec // only the address is used, never what it points to
}

func (s *striped) load() (sum uint64) {
	for i := range s {
		sum += s[i].n.Load()
	}
	return sum
}

// Stats returns the counts so far. It may be called at any time, also after Close.
func (c *Cache[K, V]) Stats() Stats {
	n := &c.count
	c.weigh()
	s := Stats{
		MemoryHits: n.memoryHits.load(), SharedHits: n.sharedHits.load(), AbsentHits: n.absentHits.Load(),
		Filtered: n.filtered.Load(), FilterAsked: n.filterChecks.Load(), FilterOpen: n.filterOpen.Load(),
		FilterAudit: n.filterAudits.Load(), FilterWrong: n.filterWrong.Load(), InvalidKeys: n.invalidKeys.Load(), Misses: n.misses.Load(), Coalesced: n.coalesced.Load(),
		Loads: n.loads.Load(), LoadedKeys: n.loadedKeys.Load(), LoadErrors: n.loadErrors.Load(), LoadPanics: n.loadPanics.Load(),
		LoadsRefused: n.loadsRefused.Load(), FirstMisses: n.firstMisses.Load(), StaleServed: n.staleServed.Load(), StaleErrors: n.staleErrors.Load(),
		Shed: n.shed.Load(), BackOffs: n.backOffs.Load(),
		BreakerRefused: c.breaker.Refused(), SourceBreakerTrips: c.breaker.Trips(), SourceBreaker: c.breaker.State(),
		SharedErrors: n.sharedErrors.Load(), EncodeErrors: n.encodeErrors.Load(), DecodeErrors: n.decodeErrors.Load(),
		RefreshesAhead: n.refreshesAhead.Load(), HotKeys: uint64(c.hot.Hot()), //nolint:gosec // never negative
		BusGaps: n.busGaps.Load(), Invalidations: n.invalidations.Load(), Events: n.events.Load(),
		Failovers: n.failovers.Load(), Replayed: n.replayed.Load(),
		Pending:         uint64(c.waiting()), //nolint:gosec // never negative
		ColdStartFactor: c.burden.hundredths(c.gate.Slots(rebuild.Foreground)),
		LoadsRunning:    c.gate.Running(), LoadsWaiting: c.gate.Waiting(),
		AbsentShed: c.gate.ShedAs(rebuild.Suspect),
	}
	if c.o.Shared != nil {
		r := c.o.Shared.Stats()
		s.RedisBreaker, s.RedisBreakerTrips = r.Breaker, r.BreakerTrips
	}
	if c.gate.Flooded() {
		s.AbsentFlood = 1
	}
	m := c.memory.Stats()
	s.MemoryBytes, s.MemoryEntries, s.HotPinned = m.Bytes, m.Entries, m.Pins
	if c.filter != nil {
		c.filterStats(&s)
	}
	if c.segments != nil {
		c.segmentStats(&s)
	}
	if c.shared != nil {
		copies := c.shared.CopyStats()
		s.CopyReads, s.CopiesMade = copies.Reads, copies.Made
	}
	return s
}
