package rebuild

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newLoads(t *testing.T, o GateOptions, timeout time.Duration) (*Loads, *Gate) {
	t.Helper()
	g := newGate(t, o)
	return NewLoads(g, timeout, nil), g
}

func TestRunReturnsTheResultAndItsCost(t *testing.T) {
	// The result comes with the time that the load took, without the wait at the gate; the slot is free when Run has returned.
	synctest.Test(t, func(t *testing.T) {
		l, g := newLoads(t, GateOptions{Loads: 1}, time.Second)
		require.NoError(t, g.Enter(t.Context()))
		time.AfterFunc(50*time.Millisecond, g.Leave)
		want := errors.New("no such table")
		value, took, err := Run(t.Context(), l, func(context.Context) (int, error) {
			pass(20 * time.Millisecond)
			return 7, want
		})
		require.Equal(t, 7, value)
		require.Equal(t, want, err)
		require.Equal(t, 20*time.Millisecond, took)
		require.Zero(t, g.Running())
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestRunNeverTakesItsOwnEndForACancellation(t *testing.T) {
	// A load that returned is answered with what it returned, though its context is ended right after it, and though that takes long
	// (the loader has left many contexts under its own).
	l, _ := newLoads(t, GateOptions{}, time.Minute)
	var cancels []context.CancelFunc
	for range 5 {
		value, _, err := Run(t.Context(), l, func(ctx context.Context) (int, error) {
			for range 20_000 {
				_, cancel := context.WithCancel(ctx)
				cancels = append(cancels, cancel)
			}
			return 7, nil
		})
		require.NoError(t, err)
		require.Equal(t, 7, value)
	}
	for _, cancel := range cancels {
		cancel()
	}
	require.Zero(t, l.Close(t.Context()))
}

func TestRunTimeoutReturnsAtOnceAndKeepsTheSlot(t *testing.T) {
	// A loader that ignores its context: the caller gets context.DeadlineExceeded at the timeout, the slot is taken until the loader
	// returns, and what it returns then is dropped.
	synctest.Test(t, func(t *testing.T) {
		l, g := newLoads(t, GateOptions{Loads: 1, Wait: 10 * time.Millisecond}, time.Second)
		gate := make(chan struct{})
		begun := time.Now()
		value, took, err := Run(t.Context(), l, when(gate, 7))
		require.Equal(t, context.DeadlineExceeded, err)
		require.Zero(t, value)
		require.Equal(t, time.Second, took)
		require.Equal(t, time.Second, time.Since(begun))
		require.EqualValues(t, 1, g.Running())
		_, _, err = Run(t.Context(), l, never(t))
		require.Equal(t, ErrOverloaded, err)
		close(gate)
		synctest.Wait()
		require.Zero(t, g.Running())
		_, _, err = Run(t.Context(), l, func(context.Context) (int, error) { return 8, nil })
		require.NoError(t, err)
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestRunLoadsContextEndsAtTheTimeout(t *testing.T) {
	// The loader's context ends at the timeout; without a timeout only with the caller's.
	synctest.Test(t, func(t *testing.T) {
		obedient := func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		l, _ := newLoads(t, GateOptions{}, time.Second)
		_, _, err := Run(t.Context(), l, obedient)
		require.Equal(t, context.DeadlineExceeded, err)
		require.Zero(t, l.Close(t.Context()))

		l, _ = newLoads(t, GateOptions{}, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		_, _, err = Run(ctx, l, obedient)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Hour, time.Since(begun))
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestRunPanicAndGoexitAreErrors(t *testing.T) {
	// A loader that panics or leaves by Goexit gives an error and its slot back, and the process lives.
	l, g := newLoads(t, GateOptions{Loads: 1}, time.Second)
	_, _, err := Run(t.Context(), l, func(context.Context) (int, error) { panic("boom") })
	var p *PanicError
	require.ErrorAs(t, err, &p)
	require.Equal(t, "boom", p.Value)
	require.NoError(t, p.Unwrap())
	require.Contains(t, err.Error(), "boom")
	_, _, err = Run(t.Context(), l, func(context.Context) (int, error) { runtime.Goexit(); return 1, nil })
	require.Equal(t, ErrGoexit, err)
	require.Zero(t, g.Running())
	require.Zero(t, l.Close(t.Context()))
}

func TestLoadsCloseCountsLoadersThatIgnoreTheirContext(t *testing.T) {
	// Close ends loads with the cause ErrClosed, refuses those at the gate and those to come, waits until its context ends, and says
	// how many loaders have not returned; called again it waits for those.
	synctest.Test(t, func(t *testing.T) {
		l, g := newLoads(t, GateOptions{Loads: 2}, time.Minute)
		gate := make(chan struct{})
		run := func(fn func(context.Context) (int, error)) <-chan error {
			got := make(chan error, 1)
			go func() {
				_, _, err := Run(t.Context(), l, fn)
				got <- err
			}()
			synctest.Wait()
			return got
		}
		stubborn := run(when(gate, 7))
		obedient := run(func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, context.Cause(ctx) })
		queued := run(never(t))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		require.Equal(t, 1, l.Close(ctx))
		require.Equal(t, time.Second, time.Since(begun))
		for _, got := range []<-chan error{stubborn, obedient, queued} {
			require.ErrorIs(t, <-got, ErrClosed)
		}
		_, _, err := Run(t.Context(), l, never(t))
		require.Equal(t, ErrClosed, err)
		close(gate)
		require.Zero(t, l.Close(t.Context()))
		require.Zero(t, g.Running())
	})
}

func TestLoadsCloseRefusesWhoWaitsAtTheGate(t *testing.T) {
	// Who waits at the gate gets ErrClosed at Close, though no slot becomes free.
	synctest.Test(t, func(t *testing.T) {
		l, _ := newLoads(t, GateOptions{Loads: 1}, time.Minute)
		gate := make(chan struct{})
		got := make(chan error, 2)
		go func() {
			_, _, err := Run(t.Context(), l, when(gate, 7))
			got <- err
		}()
		synctest.Wait()
		go func() {
			_, _, err := Run(t.Context(), l, never(t))
			got <- err
		}()
		synctest.Wait()
		over, cancel := context.WithCancel(t.Context())
		cancel()
		begun := time.Now()
		require.Equal(t, 1, l.Close(over))
		for range 2 {
			require.ErrorIs(t, <-got, ErrClosed)
		}
		require.Zero(t, time.Since(begun))
		close(gate)
		require.Zero(t, l.Close(t.Context()))
	})
}
