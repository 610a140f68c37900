package consistency

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

var errDown = errors.New("redis is down")

// taker is a shared tier that takes every invalidation but those of the keys in refused, and remembers what it was sent.
type taker struct {
	refused map[string]bool
	batches [][]string
	during  func(ids []string) // optional: happens after the shared tier took ids, before its reply
}

func (s *taker) send(_ context.Context, ids []string) []error {
	s.batches = append(s.batches, ids)
	if s.during != nil {
		s.during(ids)
	}
	errs := make([]error, len(ids))
	for i, id := range ids {
		if s.refused[id] {
			errs[i] = errDown
		}
	}
	return errs
}

// noMove is for tests without an overflow.
func noMove(t *testing.T) func(context.Context) error {
	t.Helper()
	return func(context.Context) error {
		t.Error("moved without an overflow")
		return nil
	}
}

func TestPendingKeepsAKeyUntilItWasTaken(t *testing.T) {
	// R13: a key is pending from Add until a replay of it succeeded, also while that replay is under way; others never are.
	p := NewPending(0)
	require.False(t, p.Has("a"))
	p.Add("a", "b", "a")
	require.Equal(t, 2, p.Len())
	require.True(t, p.Has("a"))
	require.False(t, p.Has("c"))

	s := &taker{refused: map[string]bool{"a": true}, during: func(ids []string) {
		for _, id := range ids {
			require.True(t, p.Has(id), "key %s is being replayed", id)
		}
	}}
	require.Equal(t, 1, p.Replay(t.Context(), s.send, noMove(t)))
	require.True(t, p.Has("a"))
	require.False(t, p.Has("b"))
	s.refused = nil
	require.Zero(t, p.Replay(t.Context(), s.send, noMove(t)))
	require.False(t, p.Has("a"))
	require.Equal(t, [][]string{{"b", "a"}, {"a"}}, s.batches, "oldest first, by the newest Add of each")
}

func TestPendingKeyAddedDuringItsReplayStays(t *testing.T) {
	// 1 The shared tier takes the replayed delete of a. 2 A newer invalidation of a is queued. 3 The reply of 1 arrives: a must stay,
	// for what was read between 1 and 2 may be stored after 1's delete.
	p := NewPending(0)
	p.Add("a", "b")
	s := &taker{}
	s.during = func([]string) { p.Add("a") }
	require.Equal(t, 1, p.Replay(t.Context(), s.send, noMove(t)))
	require.True(t, p.Has("a"))
	require.False(t, p.Has("b"))
	s.during = nil
	require.Zero(t, p.Replay(t.Context(), s.send, noMove(t)))
}

func TestPendingReplayGoesInBatches(t *testing.T) {
	// Keys go out oldest first, at most 256 at a time; a failed batch does not hold up the next one.
	p := NewPending(0)
	refused := map[string]bool{}
	for i := range 600 {
		id := fmt.Sprint(i)
		p.Add(id)
		refused[id] = i < 256
	}
	s := &taker{refused: refused}
	require.Equal(t, 256, p.Replay(t.Context(), s.send, noMove(t)))
	require.Len(t, s.batches, 3)
	require.Len(t, s.batches[0], 256)
	require.Len(t, s.batches[2], 88)
	require.Equal(t, "0", s.batches[0][0])
	require.Equal(t, "599", s.batches[2][87])
}

func TestPendingReplayStopsWithItsContext(t *testing.T) {
	// A replay whose context ends sends no further batch, and moves nothing.
	p := NewPending(300)
	for i := range 300 {
		p.Add(fmt.Sprint(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := &taker{during: func([]string) { cancel() }}
	require.Equal(t, 44, p.Replay(ctx, s.send, noMove(t)))
	for i := range 300 {
		p.Add(fmt.Sprint(i))
	}
	p.Add("one too many")
	require.True(t, p.Overflowed())
	require.Equal(t, 300, p.Replay(ctx, s.send, noMove(t)))
	require.True(t, p.Overflowed())
}

func TestPendingMissingReplyIsAFailure(t *testing.T) {
	// Ids for which send gives no error value stay pending.
	p := NewPending(0)
	p.Add("a", "b")
	require.Equal(t, 1, p.Replay(t.Context(), func(context.Context, []string) []error { return make([]error, 1) }, noMove(t)))
	require.True(t, p.Has("b"))
}

func TestPendingOverflowMakesEverythingPending(t *testing.T) {
	// One key more than fits: every key is pending until a move succeeded. A failed move changes nothing, and then nothing is sent.
	p := NewPending(2)
	p.Add("a", "b")
	p.Add("b", "a") // known keys need no room
	require.False(t, p.Overflowed())
	p.Add("c")
	require.True(t, p.Overflowed())
	require.True(t, p.Has("never added"))
	require.Equal(t, 2, p.Len())

	s := &taker{}
	require.Equal(t, 2, p.Replay(t.Context(), s.send, func(context.Context) error { return errDown }))
	require.True(t, p.Has("never added"))
	p.Add("d") // before the next move begins: covered by it
	require.Zero(t, p.Replay(t.Context(), s.send, func(context.Context) error {
		require.True(t, p.Has("never added"), "during the move")
		return nil
	}))
	require.Empty(t, s.batches)
	require.False(t, p.Has("a"))
	require.False(t, p.Overflowed())
}

func TestPendingAddedDuringAMoveStays(t *testing.T) {
	// 1 The shared tier moves the generation. 2 An invalidation of a is queued. 3 The reply of 1 arrives: a stays pending and is sent
	// after it; if what came in 2 overflowed again, everything stays pending.
	p := NewPending(2)
	overflow := func() { p.Add("x", "y", "z") }
	overflow()
	s := &taker{refused: map[string]bool{"a": true}}
	require.Equal(t, 1, p.Replay(t.Context(), s.send, func(context.Context) error { p.Add("a"); return nil }))
	require.False(t, p.Overflowed())
	require.True(t, p.Has("a"))
	require.False(t, p.Has("x"))
	require.Equal(t, [][]string{{"a"}}, s.batches)

	overflow()
	require.Equal(t, 2, p.Replay(t.Context(), s.send, func(context.Context) error { overflow(); return nil }))
	require.True(t, p.Overflowed())
	require.True(t, p.Has("never added"))
}

func TestPendingHasCostsNothingWhenEmpty(t *testing.T) {
	// With nothing pending, Has neither allocates nor takes a lock.
	p := NewPending(0)
	p.mu.Lock() // Has would hang if it took it
	defer p.mu.Unlock()
	require.Zero(t, testing.AllocsPerRun(100, func() { p.Has("a") }))
}

func TestPendingUnderTrafficLosesNoInvalidation(t *testing.T) {
	// A key's last delete comes after its last Add: writers number their invalidations, two replayers send them, and the shared tier
	// refuses every third send; in the end each key was sent after its last number, and nothing is pending.
	for _, limit := range []int{4, 100} {
		t.Run(fmt.Sprint("limit=", limit), func(t *testing.T) {
			p := NewPending(limit)
			const keys = 8
			var last, taken [keys]atomic.Int64
			var sends atomic.Int64
			take := func(i int) {
				for n := last[i].Load(); ; {
					old := taken[i].Load()
					if n <= old || taken[i].CompareAndSwap(old, n) {
						return
					}
				}
			}
			send := func(_ context.Context, ids []string) []error {
				errs := make([]error, len(ids))
				for j, id := range ids {
					if sends.Add(1)%3 == 0 {
						errs[j] = errDown
						continue
					}
					take(int(id[0] - '0'))
				}
				return errs
			}
			move := func(context.Context) error {
				if sends.Add(1)%3 == 0 {
					return errDown
				}
				for i := range keys {
					take(i)
				}
				return nil
			}
			var writers, replayers sync.WaitGroup
			var stop atomic.Bool
			for i := range keys {
				writers.Go(func() {
					id := fmt.Sprint(i)
					for n := range 300 {
						last[i].Store(int64(n + 1))
						p.Add(id)
						if taken[i].Load() < int64(n+1) && !p.Has(id) {
							// A replay may have succeeded between the two looks: then it has been taken by now.
							if taken[i].Load() < int64(n+1) {
								t.Errorf("key %s: not pending and not taken", id)
							}
						}
					}
				})
			}
			for range 2 {
				replayers.Go(func() {
					for !stop.Load() {
						p.Replay(t.Context(), send, move)
					}
				})
			}
			writers.Wait()
			stop.Store(true)
			replayers.Wait()
			for p.Replay(t.Context(), send, move) > 0 {
				continue
			}
			for i := range keys {
				require.Equal(t, last[i].Load(), taken[i].Load(), "newest invalidation of key %d that was taken", i)
			}
		})
	}
}
