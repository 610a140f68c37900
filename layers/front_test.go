package layers

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Property: a dead cell that a late reader offers does not stay in the front.
func TestFrontKeepsNoDeadCell(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	mustPut(t, l, 1, 1)
	settle(m)
	h, _ := l.hash(1)
	c := m.stored(h)
	m.front.offer(h, c, 0)
	require.Equal(t, c, m.front.get(h))
	l.Bump(1)
	require.Nil(t, m.front.get(h))
	m.front.offer(h, c, 0)
	require.Nil(t, m.front.get(h))

	_, st := l.Get(1)
	require.Equal(t, Miss, st)
}

// A closed Memory holds no value: its front has neither cells nor tags, also of one whose owner still holds the Memory.
// Broken by: clear without either of its stores.
func TestFrontOfAClosedMemoryIsEmpty(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	for i := range int64(100) {
		mustPut(t, l, i, i)
	}
	settle(m)
	stands := func() (tags, cells int) {
		for i := range m.front.sets {
			for j := range frontWays {
				if m.front.sets[i].tags[j].Load() != 0 {
					tags++
				}
				if m.front.sets[i].cells[j].Load() != nil {
					cells++
				}
			}
		}
		return tags, cells
	}
	for i := range int64(100) {
		_, _ = l.Get(i)
	}
	tags, cells := stands()
	require.Positive(t, tags)
	require.Positive(t, cells)
	require.NoError(t, m.Close())
	tags, cells = stands()
	require.Zero(t, tags)
	require.Zero(t, cells)
}

// Property: of the cells that share a set of the front, those that are asked for stay, and one that is not makes room when it is the new
// cell's turn.
func TestFrontKeepsWhatIsAskedFor(t *testing.T) {
	f := newFront(0)
	var cells [frontWays + 2]*cellHead
	hash := func(i int) uint64 { return uint64(i+1)<<40 | 6 }
	offer := func(i, turns int) {
		for turn := range turns {
			f.offer(hash(i), cells[i], uint64(turn))
		}
	}
	for i := range cells {
		c := &cell[int64, int64]{}
		c.owner = &localOwner{tail: tailOffset[int64, int64]()}
		cells[i] = &c.cellHead
	}
	for i := range frontWays {
		offer(i, 1)
	}
	for i := range frontWays - 1 {
		require.Equal(t, cells[i], f.get(hash(i)))
	}
	offer(frontWays, 16)
	require.Equal(t, cells[frontWays], f.get(hash(frontWays)), "it had its turn")
	require.Nil(t, f.get(hash(frontWays-1)), "the one nobody asked for")
	for i := range frontWays - 1 {
		require.Equal(t, cells[i], f.get(hash(i)), "cell %d was asked for", i)
	}
	offer(frontWays+1, 16)
	require.Nil(t, f.get(hash(frontWays+1)), "all were asked for: none makes room")
	offer(frontWays+1, 16)
	require.Equal(t, cells[frontWays+1], f.get(hash(frontWays+1)), "unless they are not asked for again")
}
