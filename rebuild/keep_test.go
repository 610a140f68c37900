package rebuild

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKeepRenewsUntilStopped(t *testing.T) {
	// The first renewal comes after one interval, then one each; none after stop, which may be called again.
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		stop := Keep(t.Context(), time.Second, func(context.Context) bool { n.Add(1); return true })
		pass(999 * time.Millisecond)
		synctest.Wait()
		require.Zero(t, n.Load(), "renewals before the first interval is over")
		pass(2 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, n.Load())
		stop()
		stop()
		pass(time.Minute)
		require.EqualValues(t, 2, n.Load())
	})
}

func TestKeepEndsWhenTheLeaseIsLost(t *testing.T) {
	// A renewal that says "lost" is the last one.
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		stop := Keep(t.Context(), time.Second, func(context.Context) bool { return n.Add(1) < 3 })
		defer stop()
		pass(time.Minute)
		require.EqualValues(t, 3, n.Load())
	})
}

func TestKeepStopWaitsForTheRenewalUnderWay(t *testing.T) {
	// stop ends the context of the renewal under way and returns only after that renewal has.
	synctest.Test(t, func(t *testing.T) {
		returned := false
		stop := Keep(t.Context(), time.Second, func(ctx context.Context) bool {
			<-ctx.Done()
			pass(100 * time.Millisecond) // what a client takes to notice
			returned = true
			return true
		})
		pass(1500 * time.Millisecond)
		stop()
		require.True(t, returned, "the renewal had returned when stop did")
	})
}

func TestKeepDoesNotRenewAtTheMomentOfItsEnd(t *testing.T) {
	// A tick that is due when the context has ended renews nothing.
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			stop := Keep(ctx, time.Second, func(context.Context) bool {
				n++
				pass(3 * time.Second) // longer than the interval, so a tick is waiting
				cancel()
				return true
			})
			pass(time.Minute)
			stop()
			require.Equal(t, 1, n, "renewals")
		})
	}
}

func TestKeepWithoutAnIntervalRenewsNothing(t *testing.T) {
	// Zero and negative intervals mean no renewal, and stop is there all the same.
	for _, every := range []time.Duration{0, -1} {
		Keep(t.Context(), every, func(context.Context) bool { t.Error("renewed"); return true })()
	}
}
