package bloom

import (
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newSeen(t *testing.T, o SeenOptions) *Seen {
	t.Helper()
	r, err := NewSeen(o)
	require.NoError(t, err)
	return r
}

func TestSeenNamesAllMistakes(t *testing.T) {
	// Every option that is out of bounds is named, in one error. Broken by: any check left out of NewSeen.
	_, err := NewSeen(SeenOptions{Keys: -1, Bits: -3, For: -2})
	require.ErrorContains(t, err, "Keys is negative: -1")
	require.ErrorContains(t, err, "Bits is -3, it must be 1 to 256")
	require.ErrorContains(t, err, "For is negative: -2ns")
}

func TestSeenForgetsAfterOnceToTwiceFor(t *testing.T) {
	// A key is remembered for For at least and twice For at most, also when nothing else is added. What is added again is remembered anew.
	//
	// Broken by: "life > 0 && time.Since" left out of over; "next.old = g.young" left out of turn; either case left out of current.
	synctest.Test(t, func(t *testing.T) {
		r := newSeen(t, SeenOptions{For: time.Minute})
		require.False(t, r.Add("first"))
		time.Sleep(30 * time.Second)
		require.False(t, r.Add("second"))
		require.True(t, r.Add("second"))
		time.Sleep(31 * time.Second)
		require.True(t, r.Add("second")) // begins a generation: first and second were of the last
		require.True(t, r.Has("first"))
		time.Sleep(time.Minute)
		require.False(t, r.Has("first"))
		require.True(t, r.Has("second"))
		require.False(t, r.Add("first"))
		time.Sleep(2 * time.Minute)
		require.False(t, r.Has("first"))
		require.False(t, r.Add("first"))
	})
}

func TestSeenIsBoundedByKeys(t *testing.T) {
	// However many keys are added, the bits grow to those of Keys and no further, the last Keys are remembered, and of keys that were never
	// added few are said to be: fewer, the more bits a key has.
	//
	// Broken by: "g.full() ||" left out of over; "min(2*keys, r.most)" made 2*keys; "blockBits / o.Bits" made blockBits / 3; "defaultSeenBits = 24" made 11; "next.old = g.young" left out.
	const most = 1 << 14
	for _, c := range []struct{ bits, blocks, wrong int }{
		{0, most/10 + 1, most / 1000},
		{11, most/23 + 1, most / 50},
		{64, most / 4, 1},
	} {
		r := newSeen(t, SeenOptions{Keys: most, Bits: c.bits})
		for i := range 10 * most {
			r.Add(strconv.Itoa(i))
		}
		g := r.now.Load()
		require.EqualValues(t, most, g.young.most)
		require.Len(t, g.young.blocks, c.blocks)
		for i := 9*most + most/50; i < 10*most; i++ { // some count as known that are not, so a generation lasts a little longer than most keys
			if !r.Has(strconv.Itoa(i)) {
				t.Fatalf("key %d of %d is forgotten", i, 10*most)
			}
		}
		wrong := 0
		for i := range most {
			if r.Has("never" + strconv.Itoa(i)) {
				wrong++
			}
		}
		require.LessOrEqual(t, wrong, c.wrong, "wrong answers of %d, with %d bits", most, c.bits)
	}
}

func TestSeenIsSmallWhileLittleIsAdded(t *testing.T) {
	// The first generation is of a few thousand keys; nothing is kept before the first key. Broken by: "min(leastSeenKeys, r.most)" made r.most.
	r := newSeen(t, SeenOptions{})
	require.False(t, r.Has("k"))
	require.Nil(t, r.now.Load())
	r.Add("k")
	require.EqualValues(t, leastSeenKeys, r.now.Load().young.most)
}

func TestSeenUnderTraffic(t *testing.T) {
	// What one goroutine added it finds again, while others add and a generation turns. Run it under -race. Broken by: "atomic.OrUint32" made a
	// plain |=.
	const most = 1 << 16
	r := newSeen(t, SeenOptions{Keys: most})
	for i := 0; r.now.Load() == nil || r.now.Load().young.most < most || r.now.Load().young.added.Load() < most*3/4; i++ {
		r.Add("before " + strconv.Itoa(i))
	}
	// What follows turns once: nobody is held up for two generations.
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 10_000 {
				key := strconv.Itoa(g) + "/" + strconv.Itoa(i)
				r.Add(key)
				if !r.Has(key) {
					t.Errorf("key %s was forgotten at once", key)
					return
				}
			}
		})
	}
	wg.Wait()
}
