package rebuild

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrClosed says that the cache was closed: before the call, or while it ran. Nothing is to be tried again.
var ErrClosed = errors.New("tiercache: closed")

// ErrOverloaded says that the gate is full and its queue too, or that the wait in it took too long. The source was not called:
// answer with less, or try again later.
var ErrOverloaded = errors.New("tiercache: overloaded")

// ErrLocked says that somebody else has the lock, or waits for it ahead of the caller. Try again later, or wait with Lock.
var ErrLocked = errors.New("tiercache: locked")

// ErrLeaseLost says that a lease is over: it was not renewed in time, the data behind it was lost, or it was given back. Another may
// hold the lock by now: stop, and let the resource refuse what carries the old token.
var ErrLeaseLost = errors.New("tiercache: lease lost")

// ErrUnavailable says that a lock's backend did not answer, or refused for a reason that passes by itself. What became of the call is
// unknown: it may have been carried out, or may be later. It is to be repeated with the same owner, or given up with a release.
var ErrUnavailable = errors.New("tiercache: the lock's backend is unavailable")

// ErrReplicas says that too few replicas confirmed a grant, which was given back therefore. Trying again at once is of no use: look
// at the replicas.
var ErrReplicas = errors.New("tiercache: too few replicas confirmed the grant")

// ErrGoexit says that a loader left by runtime.Goexit (which testing's FailNow calls too) and so has no result.
var ErrGoexit = errors.New("tiercache: loader called runtime.Goexit")

// errUnfinished is the answer of a led call whose leader went away without one: a mistake in the leader.
var errUnfinished = errors.New("tiercache: a rebuild ended without a result")

// PanicError is a loader's panic as the error that every waiter gets. The process goes on.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the goroutine that panicked, as debug.Stack writes it
}

// Error returns the panic's value as text; the stack is not part of it.
func (e *PanicError) Error() string { return fmt.Sprintf("tiercache: loader panicked: %v", e.Value) }

// Unwrap returns the panic's value if it is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// protect calls fn and hands its result to done, whichever way fn ends: a panic becomes a *PanicError, a Goexit becomes ErrGoexit.
// It is the last thing that its goroutine does: after a Goexit it does not return.
func protect[R any](fn func() (R, error), done func(R, error)) {
	var r R
	err := ErrGoexit // stands if fn neither returns nor panics
	returned := false
	defer func() {
		if !returned {
			if v := recover(); v != nil {
				err = &PanicError{Value: v, Stack: debug.Stack()}
			}
		}
		done(r, err)
	}()
	r, err = fn()
	returned = true
}

// ended returns why ctx is over: an error that matches both ctx.Err() and its cause.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
