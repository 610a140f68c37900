package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/rebuild"
)

// pressed is a source whose loads take 20 ms and which has the rows "row …"; it counts the loads of absent keys.
type pressed struct{ absent, most atomic.Int64 }

func (p *pressed) load(_ context.Context, keys []string) (map[string]string, error) {
	rows := map[string]string{}
	for _, key := range keys {
		if strings.HasPrefix(key, "row") {
			rows[key] = key
		}
	}
	if len(rows) == 0 {
		for now, most := p.absent.Add(1), p.most.Load(); now > most && !p.most.CompareAndSwap(most, now); most = p.most.Load() {
		}
		defer p.absent.Add(-1)
	}
	time.Sleep(20 * time.Millisecond)
	return rows, nil
}

// P11: under a flood of keys that do not exist and never come again, loads of such keys take no more slots than Gate.Absent once the budget is
// spent, and a row that was seen before is loaded at once, alone or beside flooding keys in one batch; a flooding key gets "not found" or
// ErrOverloaded. When the flood is over nothing is suspected. Before it, and with Absent negative, nothing is.
//
// Broken by: suspect made to return false; "&& !c.absence.rows.Has(id)" left out of it; "c.gate.Back(class, took, 1)" left out of load.
func TestFloodOfAbsentKeysLeavesTheGateToRows(t *testing.T) {
	for _, budget := range []int{4, -1} {
		synctest.Test(t, func(t *testing.T) {
			p := &pressed{}
			c := openCache(t, tiercache.Options[string, string]{
				Name: "flood", LoadMany: p.load, TTL: 10 * time.Hour, Jitter: -1, MaxStale: -1,
				Gate: rebuild.GateOptions{Loads: 40, Waiting: 40, Absent: budget},
			})
			for i := range 200 {
				wantValue(t, c, fmt.Sprint("row ", i), fmt.Sprint("row ", i))
			}
			require.NoError(t, c.Invalidate(t.Context(), "row 0"))
			var wg sync.WaitGroup
			n := 0
			flood := func(rounds int) {
				for range rounds {
					for range 100 {
						n++
						wg.Go(func() {
							if _, err := c.Get(t.Context(), "none "+strconv.Itoa(n)); err != nil && !errorsIsAny(err, tiercache.ErrNotFound, tiercache.ErrOverloaded) {
								t.Errorf("an absent key: %v", err)
							}
						})
						synctest.Wait()
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
			flood(20)
			if budget < 0 {
				require.Zero(t, c.Stats().AbsentFlood)
				require.EqualValues(t, 40, p.most.Load())
				wg.Wait()
				return
			}
			require.EqualValues(t, 1, c.Stats().AbsentFlood)
			time.Sleep(30 * time.Millisecond) // the loads of before the budget was spent
			p.most.Store(0)
			flood(50)
			require.LessOrEqual(t, p.most.Load(), int64(budget), "loads of absent keys at once")
			require.Positive(t, c.Stats().AbsentShed)
			begun := time.Now()
			wantValue(t, c, "row 0", "row 0")
			require.Equal(t, 20*time.Millisecond, time.Since(begun), "a row waited for absent keys")

			require.NoError(t, c.Invalidate(t.Context(), "row 1"))
			flood(1)
			rows, _ := c.GetMany(t.Context(), []string{"none of the batch", "row 1"})
			require.Equal(t, map[string]string{"row 1": "row 1"}, rows)
			wg.Wait()
			for range 2 { // the window in which it ended, and one without it
				time.Sleep(time.Second)
				_ = c.Stats()
			}
			require.Zero(t, c.Stats().AbsentFlood, "the flood is over")
		})
	}
}

func errorsIsAny(err error, targets ...error) bool {
	for _, one := range targets {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}
