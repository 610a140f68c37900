package rebuild

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// lease is the lease of one key, as the shared tier has it: its events reach those who listen at that moment.
type lease struct {
	acquire func(ctx context.Context, poll bool) (Answer, error)
	asked   []time.Duration // when Acquire was called, since begun
	begun   time.Time

	mu        sync.Mutex
	listeners map[chan struct{}]bool
}

func newLease(acquire func(ctx context.Context, poll bool) (Answer, error)) *lease {
	return &lease{listeners: map[chan struct{}]bool{}, acquire: acquire, begun: time.Now()}
}

// held answers Held with so much of the lease left until the moment after begun, and Found from then on.
func held(left, until time.Duration) func(context.Context, bool) (Answer, error) {
	end := time.Now().Add(until)
	return func(context.Context, bool) (Answer, error) {
		if time.Now().Before(end) {
			return Answer{Verdict: Held, Left: left}, nil
		}
		return Answer{Verdict: Found}, nil
	}
}

func (l *lease) Listen() (<-chan struct{}, func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ready := make(chan struct{}, 1)
	l.listeners[ready] = true
	return ready, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.listeners, ready)
	}
}

func (l *lease) Acquire(ctx context.Context, poll bool) (Answer, error) {
	if poll != (len(l.asked) > 0) {
		return Answer{}, errors.New("every ask but the first is a poll")
	}
	l.asked = append(l.asked, time.Since(l.begun))
	return l.acquire(ctx, poll)
}

func (l *lease) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ready := range l.listeners {
		select {
		case ready <- struct{}{}:
		default:
		}
	}
}

func TestObtainHearsWhatHappensRightAfterItWasTold(t *testing.T) {
	// R10: 1 B is told "held". 2 A fills and publishes before B does anything else. 3 B must hear it, not sleep until its next poll.
	synctest.Test(t, func(t *testing.T) {
		var l *lease
		filled := false
		l = newLease(func(context.Context, bool) (Answer, error) {
			if filled {
				return Answer{Verdict: Found}, nil
			}
			filled = true
			l.publish()
			return Answer{Verdict: Held, Left: time.Minute}, nil
		})
		a, err := Obtain(t.Context(), l, time.Minute, true)
		require.NoError(t, err)
		require.Equal(t, Found, a.Verdict)
		require.Equal(t, []time.Duration{0, 0}, l.asked, "moments of asking")
		require.Empty(t, l.listeners, "still listening")
	})
}

func TestObtainPollsWhereNoEventComes(t *testing.T) {
	// Without events it asks after 200 ms, then after pauses growing by half up to 1 s, each longer or shorter by up to a quarter.
	synctest.Test(t, func(t *testing.T) {
		l := newLease(held(time.Hour, 8*time.Second))
		a, err := Obtain(t.Context(), l, time.Minute, true)
		require.NoError(t, err)
		require.Equal(t, Found, a.Verdict)
		want := 200 * time.Millisecond
		jittered := false
		for i := 1; i < len(l.asked); i++ {
			got := l.asked[i] - l.asked[i-1]
			require.InDelta(t, want, got, float64(want)/4, "pause %d", i)
			jittered = jittered || got != want
			want = min(want*3/2, time.Second)
		}
		require.True(t, jittered, "no pause was jittered")
		require.GreaterOrEqual(t, len(l.asked), 10)
	})
}

func TestObtainAsksWhenTheLeaseInTheWayEnds(t *testing.T) {
	// The end of the other's lease comes before the next poll: it is asked then, not earlier and at most 21 ms later.
	synctest.Test(t, func(t *testing.T) {
		l := newLease(held(30*time.Millisecond, 30*time.Millisecond))
		_, err := Obtain(t.Context(), l, time.Minute, true)
		require.NoError(t, err)
		require.Len(t, l.asked, 2)
		require.Greater(t, l.asked[1], 30*time.Millisecond)
		require.LessOrEqual(t, l.asked[1], 51*time.Millisecond)
	})
}

func TestObtainNeverAsksWithoutAPause(t *testing.T) {
	// A lease in the way with nothing left of it (its end is this millisecond) does not make a busy loop.
	synctest.Test(t, func(t *testing.T) {
		l := newLease(held(-time.Millisecond, time.Second))
		_, err := Obtain(t.Context(), l, time.Minute, true)
		require.NoError(t, err)
		for i := 1; i < len(l.asked); i++ {
			require.GreaterOrEqual(t, l.asked[i]-l.asked[i-1], time.Millisecond)
		}
	})
}

func TestObtainWakesOnReady(t *testing.T) {
	// An event wakes the waiter at once; if the lease is still held it waits on.
	synctest.Test(t, func(t *testing.T) {
		l := newLease(held(time.Hour, 150*time.Millisecond))
		time.AfterFunc(100*time.Millisecond, l.publish)
		time.AfterFunc(150*time.Millisecond, l.publish)
		a, err := Obtain(t.Context(), l, time.Minute, true)
		require.NoError(t, err)
		require.Equal(t, Found, a.Verdict)
		require.Equal(t, []time.Duration{0, 100 * time.Millisecond, 150 * time.Millisecond}, l.asked)
	})
}

func TestObtainReturnsWhatNeedsNoWaiting(t *testing.T) {
	// Granted, Found and BackOff come back at once, and so does Held for a caller that is not patient.
	for _, v := range []Verdict{Granted, Found, BackOff, Held} {
		l := newLease(func(context.Context, bool) (Answer, error) { return Answer{Verdict: v, Left: time.Second}, nil })
		a, err := Obtain(t.Context(), l, time.Minute, v != Held)
		require.NoError(t, err)
		require.Equal(t, Answer{v, time.Second}, a)
		require.Len(t, l.asked, 1)
		require.Empty(t, l.listeners)
	}
}

func TestObtainReturnsAcquireErrors(t *testing.T) {
	// An error of Acquire comes back as it is, from the first ask and from a poll.
	synctest.Test(t, func(t *testing.T) {
		want := errors.New("redis is down")
		for _, first := range []bool{true, false} {
			l := newLease(func(_ context.Context, poll bool) (Answer, error) {
				if first || poll {
					return Answer{}, want
				}
				return Answer{Verdict: Held, Left: time.Hour}, nil
			})
			_, err := Obtain(t.Context(), l, time.Minute, true)
			require.Equal(t, want, err)
			require.Empty(t, l.listeners)
		}
	})
}

func TestObtainIsBounded(t *testing.T) {
	// It ends after its limit with context.DeadlineExceeded, or with its context and that one's cause, waiting or asking.
	waiting := func(context.Context, bool) (Answer, error) { return Answer{Verdict: Held, Left: time.Hour}, nil }
	asking := func(ctx context.Context, _ bool) (Answer, error) {
		<-ctx.Done()
		return Answer{}, errors.New("the call's budget is over")
	}
	for name, acquire := range map[string]func(context.Context, bool) (Answer, error){"waiting": waiting, "asking": asking} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLease(acquire)
				_, err := Obtain(t.Context(), l, 6*time.Second, true)
				require.Equal(t, context.DeadlineExceeded, err)
				require.Equal(t, 6*time.Second, time.Since(l.begun))

				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(ErrClosed) })
				l = newLease(acquire)
				_, err = Obtain(ctx, l, 6*time.Second, true)
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorIs(t, err, ErrClosed)
				require.Equal(t, time.Second, time.Since(l.begun))
				require.Empty(t, l.listeners)
			})
		})
	}
}
