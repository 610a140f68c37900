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
