package backendtest

import (
	"context"
	"errors"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/rebuild"
)

func faultCases() []Case {
	return []Case{
		{"an ended context sends nothing", endedContext},
		{"a context ends a call to a store that hangs", contextOverHang},
		{"Left is kept by a store that answers late", leftAfterPause},
		{"a watch ends with its context", watchEnds},
		{"a watch that may have missed something ends", deafnessTold},
		{"tokens grow over a loss of all data", tokensOverLoss},
		{"a holder from before a loss is told, and drops one with an older token", holderBeforeLoss},
	}
}

// Property: with a context that is over nothing is asked, and the error says why.
func endedContext(t T, s Subject) {
	name := newName()
	cause := errors.New("the caller's own reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	a := exclusive(name, "a")
	_, err := s.Backend.Acquire(ctx, a)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, cause)
	acquired(t, s.Other, exclusive(name, "b"))
	_, err = s.Backend.Renew(ctx, a, 1)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.Backend.Release(ctx, a, 0, 0), context.Canceled)
	require.ErrorIs(t, s.Backend.Watch(ctx, "a", func() {}, func(string, string) {}), context.Canceled)
}

// Property: every call returns when its context ends, whatever the store does; what became of it is unknown, and a burned owner is out of
// the way for good.
func contextOverHang(t T, s Subject) {
	if s.Pause == nil {
		t.Skip("this store cannot be paused")
	}
	name := newName()
	a := exclusive(name, "a")
	acquired(t, s.Other, exclusive(newName(), "b")) // the connections stand
	resume := s.Pause()
	defer resume()
	calls := map[string]func(context.Context) error{
		"acquire": func(ctx context.Context) error { _, err := s.Backend.Acquire(ctx, a); return err },
		"renew":   func(ctx context.Context) error { _, err := s.Backend.Renew(ctx, a, 1); return err },
		"release": func(ctx context.Context) error { return s.Backend.Release(ctx, a, 0, 0) },
	}
	for what, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), s.Lease/3)
		defer cancel()
		result := make(chan error, 1)
		go func() { result <- call(ctx) }()
		select {
		case err := <-result:
			require.ErrorIs(t, err, context.DeadlineExceeded, what)
		case <-time.After(s.Patience):
			require.Fail(t, "it does not return when its context ends", what)
		}
	}
	resume()
	s.await(t, "the owner is released for good", func() bool {
		err := s.Backend.Release(t.Context(), a, 0, burn)
		require.True(t, err == nil || errors.Is(err, rebuild.ErrLeaseLost) || errors.Is(err, rebuild.ErrUnavailable), "release: %v", err)
		return !errors.Is(err, rebuild.ErrUnavailable)
	})
	_, err := s.Backend.Acquire(t.Context(), a)
	require.ErrorIs(t, err, rebuild.ErrLeaseLost, "a late copy of the acquire")
	acquired(t, s.Other, exclusive(name, "b"))
}

// Property: an answer that was long under way still bounds the next grant, if it is counted from before the request.
func leftAfterPause(t T, s Subject) {
	if s.Pause == nil {
		t.Skip("this store cannot be paused")
	}
	a := exclusive(newName(), "a")
	a.Lease = s.Lease
	acquired(t, s.Backend, exclusive(newName(), "b")) // the connections stand
	resume := s.Pause()
	defer resume()
	sent := time.Now()
	result := make(chan error, 1)
	var g rebuild.LockGrant
	go func() {
		var err error
		g, err = s.Backend.Acquire(t.Context(), a)
		result <- err
	}()
	for time.Since(sent) < s.Lease/2 { // the request is under way meanwhile
		<-time.After(s.Lease / 10)
	}
	resume()
	if err := <-result; errors.Is(err, rebuild.ErrUnavailable) {
		t.Skip("the backend gave the call up")
	} else {
		require.NoError(t, err)
	}
	successor(t, s, a, g, sent)
}

// Property: a watch returns when its context ends, with that error.
func watchEnds(t T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	ready, over := make(chan struct{}), make(chan error, 1)
	go func() { over <- s.Backend.Watch(ctx, "a", func() { close(ready) }, func(string, string) {}) }()
	select {
	case <-ready:
	case err := <-over:
		require.NoError(t, err, "the watch ended before it was ready")
	case <-time.After(s.Patience):
		require.Fail(t, "the watch is not ready")
	}
	cancel()
	select {
	case err := <-over:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(s.Patience):
		require.Fail(t, "the watch does not return when its context ends")
	}
}

// Property: a watch whose connection is gone, or answers nothing, returns; a new one hears again.
func deafnessTold(t T, s Subject) {
	if s.Deafen == nil && s.Pause == nil {
		t.Skip("nothing can make this backend deaf")
	}
	told := func(what string, cut func() (heal func())) {
		w := s.watch(t, s.Backend, "a")
		heal := cut()
		defer heal()
		select {
		case <-w.over:
			require.ErrorIs(t, w.err, rebuild.ErrUnavailable, what)
			require.NotErrorIs(t, w.err, context.Canceled, what)
		case <-time.After(s.Patience):
			require.Fail(t, "the watch is deaf and does not say so", what)
		}
	}
	if s.Deafen != nil {
		told("its connection was cut", func() func() { s.Deafen(); return func() {} })
	}
	if s.Pause != nil {
		told("the store hangs", s.Pause)
	}
	if s.Silent {
		return
	}
	w := s.watch(t, s.Backend, "a")
	name := newName()
	b, a := exclusive(name, "b"), waiting(exclusive(name, "a"))
	g := acquired(t, s.Other, b)
	refused(t, s.Backend, a)
	released(t, s.Other, b, g.Token)
	w.wakes(t, a)
}

// Property: a token given after the data was lost is above all before, as the asker names them or by the store's clock.
func tokensOverLoss(t T, s Subject) {
	if s.Forget == nil {
		t.Skip("this store loses nothing")
	}
	name := newName()
	a := exclusive(name, "a")
	g := acquired(t, s.Backend, a)
	s.Forget()
	b := exclusive(name, "b")
	h := acquired(t, s.Other, b)
	require.Greater(t, h.Token, g.Token, "a token after a loss, by the store's clock")
	s.Forget()
	c := exclusive(name, "c")
	c.Floor = h.Floor + 1e10 // as one who has heard of what nobody remembers
	i := acquired(t, s.Other, c)
	require.Greater(t, i.Token, c.Floor, "a token after a loss, by what the asker has seen")
}

// Property: the holder from before a loss learns of it by its renewal, and one who was granted an older token meanwhile (its asker knew of
// nothing newer) is dropped by that renewal: a resource that has seen the newer token would refuse it.
func holderBeforeLoss(t T, s Subject) {
	if s.Forget == nil {
		t.Skip("this store loses nothing")
	}
	name := newName()
	a := exclusive(name, "a")
	a.Floor = acquired(t, s.Backend, exclusive(newName(), "z")).Floor + 1e10
	g := acquired(t, s.Backend, a)
	s.Forget()
	b := exclusive(name, "b")
	h := acquired(t, s.Other, b)
	require.Less(t, h.Token, g.Token, "the token of one who has seen nothing")
	lost(t, s.Backend, a, g.Token)
	lost(t, s.Other, b, h.Token)
	require.Greater(t, acquired(t, s.Other, exclusive(name, "c")).Token, g.Token, "the next token")
}
