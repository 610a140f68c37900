package layers

import (
	"fmt"
	"math/rand"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// put puts a key's value, or that it is absent, over what stands there.
func (s *policySim) put(key int, absent bool, bytes uint32) *cellHead {
	c := &cell[int, int]{key: key}
	c.owner, c.bytes = s.owner, bytes
	c.fresh = 1 << 62
	c.t.hash = spread(key)
	if absent {
		c.state.Store(stateAbsent)
	}
	h := &c.cellHead
	var victims []*cellHead
	if old := s.cells[key]; old != nil {
		delete(s.keys, old)
		s.cells[key], s.keys[h] = h, key
		old.state.Or(stateDead)
		victims = s.p.replace(old, h, nil)
	} else {
		s.cells[key], s.keys[h] = h, key
		victims = s.p.add(h, nil)
	}
	s.bury(victims)
	return h
}

func (s *policySim) bury(victims []*cellHead) {
	for _, v := range victims {
		delete(s.cells, s.keys[v])
		delete(s.keys, v)
	}
}

// check compares what the policy counts with the cells that its lists hold and with those that should be there, one by one. It returns what
// differs. Called after each of many calls, so it compares without testify.
func (s *policySim) check() error {
	seen, used := int64(0), int64(0)
	for region, r := range map[uint32]*cellRegion{stateWindow: &s.p.window, stateMain: &s.p.main, stateAside: &s.p.aside, statePinned: &s.p.pinned} {
		bytes, cells := int64(0), int64(0)
		var prev *cellHead
		for c := r.oldest; c != nil; prev, c = c, c.tail().next {
			key := s.keys[c]
			switch {
			case s.cells[key] != c || !c.alive():
				return fmt.Errorf("region %b lists a cell that is not its key's newest, key %d", region, key)
			case c.region() != region:
				return fmt.Errorf("region %b lists a cell of region %b", region, c.region())
			case s.p.pinnedLocked(c.tail().hash) != (region == statePinned):
				return fmt.Errorf("region %b lists key %d, pinned %t", region, key, region != statePinned)
			case region != statePinned && c.absent() != (region == stateAside):
				return fmt.Errorf("region %b lists a cell of another kind, absent %t", region, c.absent())
			case c.tail().prev != prev:
				return fmt.Errorf("region %b: the link back of key %d is wrong", region, key)
			}
			bytes += int64(c.bytes)
			cells++
		}
		if r.newest != prev || r.bytes != bytes || r.cells != cells {
			return fmt.Errorf("region %b counts %d bytes of %d cells and lists %d of %d", region, r.bytes, r.cells, bytes, cells)
		}
		seen += cells
		used += bytes
	}
	switch {
	case int(seen) != len(s.cells):
		return fmt.Errorf("%d cells are listed of %d that were put and did not go", seen, len(s.cells))
	case s.p.count != seen || s.p.used != used:
		return fmt.Errorf("%d bytes of %d cells are counted, %d of %d listed", s.p.used, s.p.count, used, seen)
	case used > s.p.max || s.p.aside.bytes > s.p.max/10 || s.p.pinned.bytes > s.p.max/4:
		return fmt.Errorf("%d bytes, %d of them absent, %d pinned, in %d", used, s.p.aside.bytes, s.p.pinned.bytes, s.p.max)
	}
	return nil
}

// Property: whatever is put, replaced, removed, read, swept and expires, after each call the policy counts exactly the cells that it lists,
// lists exactly those that stay, each in a region of its kind, and is within its bounds.
// Broken by: homeLocked in replace (stays where the old cell was); asideFullLocked; unpinColdestLocked in balanceLocked; r.cells-- in
// cellRegion.remove.
func TestRegionsAgreeWithAModel(t *testing.T) {
	var st [4]cellRegion // what went from window, main, aside and pinned in all runs
	lost := 0            // pins
	for seed := range int64(12) {
		r := rand.New(rand.NewSource(seed))
		s := newPolicySim(200)
		now := int64(0)
		for n := range 4000 {
			most := 20 + n/500%2*400 // by turns the values leave room, and do not
			pins := len(s.p.pins.owners)
			gone, unpinned := s.randomCall(r, most, now)
			now += gone
			if !unpinned && len(s.p.pins.owners) < pins {
				lost++
			}
			require.NoError(t, s.check(), "seed %d, call %d", seed, n)
		}
		for i, region := range s.p.regions() {
			st[i].evicted += region.evicted
			st[i].expired += region.expired
		}
	}
	for i := range st {
		require.Equal(t, i < 3, st[i].evicted > 5, "region %d evicted %d: pinned cells never go for space, others do here", i, st[i].evicted)
		require.Greater(t, st[i].expired, uint64(10), "region %d is not put to the test", i)
	}
	require.Greater(t, lost, 10, "pins lost to the bound")
}

// randomCall is one call of the policy, values of at most so many bytes. It returns by how much time goes on, and whether it was unpin.
func (s *policySim) randomCall(r *rand.Rand, most int, now int64) (gone int64, unpinned bool) {
	key := r.Intn(200)
	c := s.cells[key]
	switch n := r.Intn(12); {
	case n < 4:
		s.put(key, false, uint32(1+r.Intn(most)))
	case n < 6:
		s.put(key, true, uint32(100+r.Intn(50)))
	case n < 7:
		s.p.pin(spread(key), s.owner, c)
	case n < 8:
		s.bury(s.p.unpin(spread(key), c, nil))
		return 0, true
	case c == nil:
	case n < 10:
		c.use(c.state.Load())
	case n < 11:
		c.state.Or(stateDead)
		s.p.remove(c)
		s.bury([]*cellHead{c})
	default:
		if c.fresh > now {
			c.fresh = now + int64(r.Intn(20))
		}
		s.bury(s.p.sweep(r.Intn(16), now+1, nil))
		return 1, false
	}
	return 0, false
}

// Property: in a memory full of values a flood of absent keys takes a hundredth of the bytes at most, and the values keep the rest.
// Broken by: `p.used > p.max && …asideKeep` in balanceLocked (values are evicted for absent entries, up to a tenth).
func TestAFloodOfAbsentKeysDoesNotPushOutValues(t *testing.T) {
	s := newPolicySim(1000)
	for k := range 1000 {
		s.put(k, false, 100)
	}
	for k := 10_000; k < 30_000; k++ {
		s.put(k, true, 100)
	}
	require.NoError(t, s.check())
	require.EqualValues(t, 10, s.p.aside.cells, "absent entries")
	require.EqualValues(t, 990, s.p.window.cells+s.p.main.cells, "values")
}

// Property: absent entries have a tenth of the bytes while values leave it free, and values take all but a hundredth back.
// Broken by: asideFullLocked (they fill the memory); the second half of the condition of its loop (they keep their tenth).
func TestAbsentEntriesUseWhatValuesLeave(t *testing.T) {
	s := newPolicySim(1000)
	for k := 10_000; k < 30_000; k++ {
		s.put(k, true, 100)
	}
	require.EqualValues(t, 100, s.p.aside.cells)
	for k := range 900 {
		s.put(k, false, 100)
	}
	require.EqualValues(t, 100, s.p.aside.cells, "there was room for both")
	for k := 900; k < 2000; k++ {
		s.put(k, false, 100)
	}
	require.NoError(t, s.check())
	require.EqualValues(t, 10, s.p.aside.cells)
	require.EqualValues(t, 990, s.p.window.cells+s.p.main.cells)
}

// Property: an absent key that is asked for again and again outlives a flood of those that are asked for once.
// Broken by: `case c.uses() > 0` in makeRoomAsideLocked.
func TestAnAbsentKeyInUseOutlivesAFlood(t *testing.T) {
	s := newPolicySim(1000)
	asked := s.put(1, true, 100)
	for k := 10_000; k < 20_000; k++ {
		s.put(k, true, 100)
		if k%50 == 0 {
			asked.use(asked.state.Load())
		}
	}
	require.NoError(t, s.check())
	require.Same(t, asked, s.cells[1])
}

// Property: however many bytes there are, absent entries are bounded by number too.
// Broken by: `p.aside.cells > asideMostKeys` in asideFullLocked.
func TestAbsentEntriesAreBoundedByNumber(t *testing.T) {
	s := newPolicySim(10 * asideMostKeys)
	s.p.max *= 2
	for k := range asideMostKeys + 100 {
		s.put(k, true, 100)
	}
	require.EqualValues(t, asideMostKeys, s.p.aside.cells)
	require.EqualValues(t, 100, s.p.aside.evicted)
}

// Property (P11): a cell has room for a value of its cache's type whatever it says, and is counted for that: of absent keys, and of values that
// are encoded to next to nothing, memory keeps no more cells than its bound has room for.
// Broken by: "max(l.size(key, id, e), int64(unsafe.Sizeof(*c)))" made l.size(key, id, e).
func TestCellsOfLargeValuesAreCounted(t *testing.T) {
	type row [4 << 10]byte
	const bound = 1 << 20
	for _, absent := range []bool{true, false} {
		m := newMemory(t, bound)
		ints := intOptions("a")
		l, err := NewLocal(m, LocalOptions[int64, row]{Name: "a", TTL: ints.TTL, Direct: true, String: ints.String, Parse: ints.Parse})
		require.NoError(t, err)
		e := lasting(row{})
		e.Absent = absent
		if !absent {
			e.Size = 1
		}
		for k := range 3 * bound / int64(unsafe.Sizeof(row{})) {
			require.True(t, l.Put(k, e, l.Mark(k)))
			settle(m)
		}
		st := m.Stats()
		require.Positive(t, st.Entries)
		require.LessOrEqual(t, st.Entries*uint64(unsafe.Sizeof(row{})), uint64(bound), "absent %v", absent)
		checkAccounts(t, m)
	}
}
