package tiercache

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/layers"
)

func TestFirstMissIsRememberedForTwiceItsLife(t *testing.T) {
	// A key that was found absent is remembered for two AbsentTTL at least, and a minute, and for twice as long at most: a process that asks for
	// it more rarely than it would be kept for loses nothing by the rule. What Redis says is absent is remembered as if it had been found here; a
	// row is not. With AbsentMisses 1, and without Redis, there is no first miss.
	//
	// Broken by: "2*o.AbsentTTL" made o.AbsentTTL; "missedLeast," made 0,; either case left out of read; "o.Shared == nil ||" left out.
	synctest.Test(t, func(t *testing.T) {
		type opts = Options[string, string]
		open := func(o opts) absence {
			a, err := o.absence()
			require.NoError(t, err)
			return a
		}
		for _, c := range []struct{ ttl, least time.Duration }{{-1, time.Minute}, {time.Second, time.Minute}, {10 * time.Minute, 20 * time.Minute}} {
			a := open(opts{Shared: &layers.Redis{}, AbsentMisses: 2, AbsentTTL: c.ttl})
			for i := range 32 { // whenever it is added, while others are
				require.True(t, a.firstMiss(strconv.Itoa(i)))
				require.Equal(t, i < 7, a.firstMiss(strconv.Itoa(i-7)), "key %d, %v later, AbsentTTL %v", i-7, c.least*7/8, c.ttl)
				time.Sleep(c.least / 8)
			}
			time.Sleep(2 * c.least)
			require.True(t, a.firstMiss("31"), "much later, AbsentTTL %v", c.ttl)
			a.read("absent", true)
			a.read("row", false)
			require.False(t, a.firstMiss("absent"))
			require.True(t, a.firstMiss("row"))
			require.True(t, a.rows.Has("row"))
			require.False(t, a.rows.Has("absent"))
		}
		for _, a := range []absence{open(opts{Shared: &layers.Redis{}, AbsentMisses: 1}), open(opts{AbsentMisses: 2})} {
			require.False(t, a.firstMiss("k"))
			a.read("k", true)
		}
	})
}

func TestAbsentKeysAreRarelyTakenForRows(t *testing.T) {
	// Of keys without a row at most one in two thousand counts as one of which a row was seen, however many rows were: each of those is loaded beside
	// Gate.Absent while a flood is on.
	//
	// Broken by: "defaultSeenBits = 24" in bloom made 11.
	a, err := Options[string, string]{}.absence()
	require.NoError(t, err)
	for i := range 28_000 { // two generations nearly full, where the fewest bits are left
		a.read("row "+strconv.Itoa(i), false)
	}
	const asked = 100_000
	taken := 0
	for i := range asked {
		if a.rows.Has("none " + strconv.Itoa(i)) {
			taken++
		}
	}
	require.LessOrEqual(t, taken, asked/2000)
}
