package rebuild

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	errSource = errors.New("connection refused")
	errNoRow  = errors.New("no such row")
)

// fails is what the root says of errors: all but "no such row".
func fails(err error) bool { return !errors.Is(err, errNoRow) }

// newBroken returns loads behind a breaker.
func newBroken(t *testing.T, o BreakerOptions, changed func(string)) (*Loads, *Breaker, *Gate) {
	t.Helper()
	b, err := NewBreaker(o, fails, changed)
	require.NoError(t, err)
	g := newGate(t, GateOptions{Loads: 64})
	return NewLoads(g, 3*time.Second, b), b, g
}

// ends returns a load that ends with err.
func ends(err error) func(context.Context) (int, error) {
	return func(context.Context) (int, error) { return 1, err }
}

// times runs n loads one after the other and returns the last one's error.
func (l *Loads) times(t *testing.T, n int, fn func(context.Context) (int, error)) (err error) {
	t.Helper()
	for range n {
		_, _, err = Run(t.Context(), l, fn)
	}
	return err
}

func TestNewBreakerReportsAllMistakes(t *testing.T) {
	// Every bad option is named, in one error; zeros are the defaults; a negative rate is no breaker.
	// Broken by: any of check's lines left out.
	_, err := NewBreaker(BreakerOptions{FailureRate: 1.5, MinLoads: -1, Window: -2, OpenFor: -3, MaxOpenFor: -4}, fails, nil)
	for _, want := range []string{"FailureRate is 1.5", "MinLoads is negative: -1", "Window is negative: -2ns", "OpenFor is negative: -3ns", "MaxOpenFor is negative: -4ns"} {
		require.ErrorContains(t, err, want)
	}
	_, err = NewBreaker(BreakerOptions{FailureRate: math.NaN()}, fails, nil)
	require.ErrorContains(t, err, "FailureRate is NaN")
	_, err = NewBreaker(BreakerOptions{OpenFor: time.Minute, MaxOpenFor: time.Second}, fails, nil)
	require.ErrorContains(t, err, "MaxOpenFor is 1s, shorter than OpenFor 1m0s")

	var o BreakerOptions
	require.NoError(t, o.check())
	require.Equal(t, BreakerOptions{FailureRate: 0.5, MinLoads: 20, Window: 10 * time.Second, OpenFor: time.Second, MaxOpenFor: 5 * time.Second}, o)
	o = BreakerOptions{OpenFor: time.Hour}
	require.NoError(t, o.check())
	require.Equal(t, time.Hour, o.MaxOpenFor)
}

func TestNegativeRateIsNoBreaker(t *testing.T) {
	// Every load is let through, whatever the last thousand did; a nil Breaker is none either.
	// Broken by: "if o.FailureRate < 0" left out of NewBreaker.
	synctest.Test(t, func(t *testing.T) {
		l, b, g := newBroken(t, BreakerOptions{FailureRate: -1}, nil)
		require.Equal(t, errSource, l.times(t, 1000, ends(errSource)))
		require.Equal(t, errSource, NewLoads(g, time.Second, nil).times(t, 1000, ends(errSource)))
		require.Zero(t, b.State()+b.Trips()+b.Refused())
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestFailingSourceIsLeftAlone(t *testing.T) {
	// After 20 failures loads are refused at once, with the last failure, without a slot of the gate; after the open time three are let
	// through at a time, and three successes let all of them through.
	// Broken by: "l.breaker.begin()" left out of Run; "l.gate.Leave()" behind it left out; "b.last.Store(&err)" left out of end.
	synctest.Test(t, func(t *testing.T) {
		var told []string
		l, b, g := newBroken(t, BreakerOptions{}, func(state string) { told = append(told, state) })
		require.Equal(t, errSource, l.times(t, 19, ends(errSource)))
		require.Zero(t, b.State())
		last := fmt.Errorf("the last one: %w", errSource)
		require.Equal(t, last, l.times(t, 1, ends(last)))

		begun := time.Now()
		called := false
		err := l.times(t, 1000, func(context.Context) (int, error) { called = true; return 1, nil })
		require.ErrorIs(t, err, ErrBreakerOpen)
		require.ErrorIs(t, err, last)
		require.False(t, called)
		require.Zero(t, time.Since(begun))
		require.Zero(t, g.Running())
		require.EqualValues(t, []uint64{2, 1, 1000}, []uint64{b.State(), b.Trips(), b.Refused()})

		pass(1201 * time.Millisecond)
		finish := make(chan struct{})
		var all sync.WaitGroup
		results := make(chan error, 10)
		for range 10 {
			all.Go(func() {
				_, _, err := Run(t.Context(), l, func(context.Context) (int, error) { <-finish; return 1, nil })
				results <- err
			})
		}
		synctest.Wait()
		require.EqualValues(t, 3, g.Running(), "three are let through, the others have left the gate")
		require.EqualValues(t, 1, b.State())
		require.Len(t, results, 7)
		close(finish)
		all.Wait()
		refused := 0
		for range 10 {
			if errors.Is(<-results, ErrBreakerOpen) {
				refused++
			}
		}
		require.Equal(t, 7, refused)
		require.NoError(t, l.times(t, 100, ends(nil)))
		require.Equal(t, []string{"open", "half-open", "closed"}, told)
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestOpenBreakerDoesNotQueueAtTheGate(t *testing.T) {
	// While it is open a load is refused before it waits for a slot, all of which may be taken by loads that hang.
	// Broken by: "l.breaker.check()" left out of Run.
	synctest.Test(t, func(t *testing.T) {
		l, _, g := newBroken(t, BreakerOptions{}, nil)
		release := make(chan struct{})
		var all sync.WaitGroup
		for range 64 { // they ignore their context
			all.Go(func() {
				_, _, _ = Run(t.Context(), l, func(context.Context) (int, error) { <-release; return 1, nil })
			})
		}
		all.Wait()
		require.EqualValues(t, 64, g.Running())
		begun := time.Now()
		require.ErrorIs(t, l.times(t, 10, ends(nil)), ErrBreakerOpen)
		require.Zero(t, time.Since(begun))
		close(release)
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestTimeoutIsAFailureOfTheSource(t *testing.T) {
	// A load that runs into its time-out, or one of its own, counts, whether it returns or not.
	// Broken by: "&& !errors.Is(err, context.DeadlineExceeded)" left out of outcome.
	for name, fn := range map[string]func(context.Context) (int, error){
		"gives up":   func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() },
		"its own":    ends(fmt.Errorf("read: %w", context.DeadlineExceeded)),
		"both":       ends(errors.Join(context.DeadlineExceeded, context.Canceled)),
		"never ends": func(context.Context) (int, error) { pass(time.Hour); return 0, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, b, _ := newBroken(t, BreakerOptions{}, nil)
				var all sync.WaitGroup
				for range 20 {
					all.Go(func() { _, _, _ = Run(t.Context(), l, fn) })
				}
				all.Wait()
				require.EqualValues(t, 2, b.State())
				pass(2 * time.Hour)
				require.Zero(t, l.Close(t.Context()))
			})
		})
	}
}

func TestWhatSaysNothingOfTheSourceIsNotCounted(t *testing.T) {
	// A panic, a Goexit, a cancellation, a gate or breaker behind the loader count neither as failures nor as successes; a row that is not
	// there is an answer of the source.
	// Broken by: the case of outcome that names the error.
	for name, fn := range map[string]func(context.Context) (int, error){
		"panic":      func(context.Context) (int, error) { panic("boom") },
		"Goexit":     func(context.Context) (int, error) { runtime.Goexit(); return 0, nil },
		"canceled":   ends(context.Canceled),
		"closed":     ends(fmt.Errorf("another cache: %w", ErrClosed)),
		"overloaded": ends(fmt.Errorf("another cache: %w", ErrOverloaded)),
		"open":       ends(fmt.Errorf("another cache: %w", ErrBreakerOpen)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, b, _ := newBroken(t, BreakerOptions{}, nil)
				_ = l.times(t, 19, ends(errSource))
				_ = l.times(t, 100, fn)
				require.Zero(t, b.State(), "no failures")
				_ = l.times(t, 1, ends(errSource))
				require.EqualValues(t, 2, b.State(), "no successes")
				require.Zero(t, l.Close(t.Context()))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l, b, _ := newBroken(t, BreakerOptions{}, nil)
		_ = l.times(t, 100, ends(errNoRow))
		_ = l.times(t, 99, ends(errSource))
		require.Zero(t, b.State(), "99 of 199")
		_ = l.times(t, 1, ends(errSource))
		require.EqualValues(t, 2, b.State(), "100 of 200")
		require.Zero(t, l.Close(t.Context()))
	})
}

func TestCloseIsNoFailureOfTheSource(t *testing.T) {
	// Loads that Close cuts short are not counted.
	// Broken by: "errors.Is(err, ErrClosed)" left out of outcome, and the case of the cancellation with it.
	synctest.Test(t, func(t *testing.T) {
		l, b, _ := newBroken(t, BreakerOptions{}, nil)
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() {
				_, _, err := Run(t.Context(), l, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, errSource })
				require.ErrorIs(t, err, ErrClosed)
			})
		}
		synctest.Wait()
		require.Zero(t, l.Close(t.Context()))
		all.Wait()
		require.Zero(t, b.State())
	})
}
