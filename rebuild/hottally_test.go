package rebuild

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A tally finds the keys that are read most over a minute, although none is read often and far more keys are read once: each that has more than
// its share of all reads, the reads over the places. No rate is above the true one, although a key that came late took the place of another.
// Broken by: tally.add without `over`; `count - over` in tally.take; collect in TakeTally.
func TestTallyKnowsWhatIsReadMostOverMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places, keys, once = 400, 100, 200
		h := NewHotKeys[int](&hotLog{})
		defer h.Close()
		h.Tally(places)
		noise := 0
		second := func() {
			for range once {
				noise++
				h.Seen(fmt.Sprint("once ", noise), noise)
			}
		}
		for range 30 {
			second()
			pass(time.Second)
		}
		for range 30 { // 12,000 reads once, 6,000 of the keys: 45 a place
			second()
			for key := range keys {
				h.Seen(fmt.Sprint("key ", key), key)
				h.Seen(fmt.Sprint("key ", key), key)
			}
			pass(time.Second)
		}
		synctest.Wait() // else the sketch may hold a buffer that it has not counted yet
		top := h.TakeTally(keys)
		require.Len(t, top, keys)
		for _, k := range top {
			require.Equal(t, fmt.Sprint("key ", k.Key), k.ID)
			require.LessOrEqual(t, k.Rate, 1.0, "60 reads in a minute")
			require.Greater(t, k.Rate, 0.4)
		}

		h.Seen("a", 1)
		h.Answered("b", 2)
		require.Equal(t, []HotKey[int]{{ID: "b", Key: 2, Rate: (answeredMask + 1) / 60.0}, {ID: "a", Key: 1, Rate: 1 / 60.0}}, h.TakeTally(0),
			"begun anew; over a minute at least, and at once")
		require.Empty(t, h.TakeTally(0))
		h.Close()
		require.Nil(t, h.TakeTally(0))
	})
}
