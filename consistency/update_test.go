package consistency

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// log is an Invalidator that writes down what happened, in order.
type log struct {
	begin, end error
	slow       time.Duration // what a Renew takes

	mu     sync.Mutex
	events []string
}

func (l *log) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fmt.Sprintf(format, args...))
}

func (l *log) Begin(ctx context.Context) error {
	l.add("begin %v", ctx.Err())
	return l.begin
}

func (l *log) Renew(ctx context.Context) error {
	l.add("renew %v", ctx.Err())
	pass(l.slow)
	if l.slow > 0 {
		l.add("renewed")
	}
	return errors.New("a renewal's error is nobody's")
}

func (l *log) End(ctx context.Context) error {
	l.add("end %v", ctx.Err())
	return l.end
}

// writing returns a write that takes so long and ends with err.
func (l *log) writing(took time.Duration, err error) func(context.Context) error {
	return func(context.Context) error {
		l.add("write")
		pass(took)
		return err
	}
}

func TestDoubleDeleteOrder(t *testing.T) {
	// Begin, write, a renewal every interval while it runs, End; none after it.
	synctest.Test(t, func(t *testing.T) {
		l := &log{}
		require.NoError(t, DoubleDelete(t.Context(), l, 10*time.Second, l.writing(25*time.Second, nil)))
		pass(time.Minute)
		require.Equal(t, []string{"begin <nil>", "write", "renew <nil>", "renew <nil>", "end <nil>"}, l.events)
	})
}

func TestDoubleDeleteEndsAfterTheRenewalUnderWay(t *testing.T) {
	// 1 a renewal is under way. 2 write returns. 3 End must wait for the renewal: one that arrives later opens again what End closed.
	synctest.Test(t, func(t *testing.T) {
		l := &log{slow: 5 * time.Second}
		require.NoError(t, DoubleDelete(t.Context(), l, 10*time.Second, l.writing(12*time.Second, nil)))
		require.Equal(t, []string{"begin <nil>", "write", "renew <nil>", "renewed", "end <nil>"}, l.events)
	})
}

func TestDoubleDeleteWithoutAnIntervalDoesNotRenew(t *testing.T) {
	// An interval of zero or less means no renewals.
	synctest.Test(t, func(t *testing.T) {
		l := &log{}
		require.NoError(t, DoubleDelete(t.Context(), l, 0, l.writing(time.Hour, nil)))
		require.Equal(t, []string{"begin <nil>", "write", "end <nil>"}, l.events)
	})
}

func TestDoubleDeleteJoinsErrors(t *testing.T) {
	// It writes although Begin failed, ends although write failed, and reports all; a single error comes back as it is.
	failed, pending, lost := errors.New("constraint"), errors.New("pending"), errors.New("end not sent")
	for _, tc := range []struct{ write, begin, end error }{
		{nil, nil, nil},
		{failed, nil, nil},
		{nil, pending, nil},
		{nil, nil, lost},
		{failed, pending, nil},
		{failed, pending, lost},
	} {
		l := &log{begin: tc.begin, end: tc.end}
		err := DoubleDelete(t.Context(), l, 0, l.writing(0, tc.write))
		require.Equal(t, []string{"begin <nil>", "write", "end <nil>"}, l.events)
		var want []error
		for _, e := range []error{tc.write, tc.begin, tc.end} {
			if e != nil {
				want = append(want, e)
				require.ErrorIs(t, err, e)
			}
		}
		switch len(want) {
		case 0:
			require.NoError(t, err)
		case 1:
			require.Same(t, want[0], err)
		}
	}
}

func TestDoubleDeleteSendsTheEndAfterItsContextEnded(t *testing.T) {
	// The caller gives up in mid-write: renewals go on while write runs, and the End is sent with a context that has not ended but
	// has the caller's values.
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &log{}
		err := DoubleDelete(ctx, l, 10*time.Second, func(ctx context.Context) error {
			l.add("write")
			cancel()
			pass(15 * time.Second)
			return ctx.Err()
		})
		require.Equal(t, context.Canceled, err)
		require.Equal(t, []string{"begin <nil>", "write", "renew <nil>", "end <nil>"}, l.events)
	})
}

func TestDoubleDeletePanicPassesAfterTheEnd(t *testing.T) {
	// A panic in write goes on with its own value once End was sent and the renewals stopped.
	synctest.Test(t, func(t *testing.T) {
		l := &log{}
		boom := errors.New("boom")
		require.PanicsWithValue(t, boom, func() {
			_ = DoubleDelete(t.Context(), l, 10*time.Second, func(context.Context) error {
				pass(15 * time.Second)
				panic(boom)
			})
		})
		require.Equal(t, []string{"begin <nil>", "renew <nil>", "end <nil>"}, l.events)
	})
}

func TestDoubleDeleteGoexitPassesAfterTheEnd(t *testing.T) {
	// A Goexit in write goes on once End was sent and the renewals stopped.
	synctest.Test(t, func(t *testing.T) {
		l := &log{}
		returned := false
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = DoubleDelete(t.Context(), l, 10*time.Second, func(context.Context) error {
				runtime.Goexit()
				return nil
			})
			returned = true
		})
		wg.Wait()
		require.False(t, returned)
		require.Equal(t, []string{"begin <nil>", "end <nil>"}, l.events)
	})
}
