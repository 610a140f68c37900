package rebuild

import (
	"context"
	"errors"
	"time"
)

// Loads runs the calls of the source: through a gate and a breaker, each with its own timeout. See Run.
type Loads struct {
	gate    *Gate
	breaker *Breaker
	timeout time.Duration
	work    *roster
}

// NewLoads returns Loads that share gate, which Close closes too, and breaker (nil: none). A timeout of zero or less is none: a load then
// ends with its context.
func NewLoads(gate *Gate, timeout time.Duration, breaker *Breaker) *Loads {
	return &Loads{gate: gate, breaker: breaker, timeout: timeout, work: newRoster()}
}

// loaded is what came of one load.
type loaded[R any] struct {
	r    R
	took time.Duration
	err  error
}

// Run is RunAs for Foreground.
func Run[R any](ctx context.Context, l *Loads, fn func(context.Context) (R, error)) (r R, took time.Duration, err error) {
	return RunAs(ctx, l, Foreground, fn)
}

// RunAs calls fn when the gate has let it in as one of its class, and returns what fn returned and how long that took (without the wait at the gate).
//
// The context of fn ends with ctx, after the timeout of l, or at Close (cause ErrClosed). At that moment Run returns, even if fn does
// not: after the timeout with context.DeadlineExceeded, else with an error that matches the context's error and its cause. The slot
// at the gate stays taken until fn has returned, and what fn then returns is dropped. A panic of fn comes back as a *PanicError, a
// Goexit as ErrGoexit. Errors of the gate (ErrOverloaded, ErrClosed, the end of ctx) and of the breaker (ErrBreakerOpen, joined with the
// last failure) mean that fn was not called. The breaker is asked behind the gate, since few calls pass it while it is half-open; while it
// is open nobody queues either.
func RunAs[R any](ctx context.Context, l *Loads, class Class, fn func(context.Context) (R, error)) (r R, took time.Duration, err error) {
	if err := l.breaker.check(); err != nil {
		return r, 0, err
	}
	if err := l.gate.EnterAs(ctx, class); err != nil {
		return r, 0, err
	}
	ctx, leave, err := l.work.join(ctx)
	if err != nil {
		l.gate.LeaveAs(class)
		return r, 0, err
	}
	call, err := l.breaker.begin()
	if err != nil {
		l.gate.LeaveAs(class)
		leave()
		return r, 0, err
	}
	defer func() { l.breaker.end(call, err) }()
	cancel := func() {}
	if l.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, l.timeout)
	}
	begun := time.Now()
	result := make(chan loaded[R], 1)
	go protect(
		func() (R, error) { return fn(ctx) },
		func(r R, err error) {
			took := time.Since(begun)
			l.gate.LeaveAs(class) // before the result: who has it finds the slot free
			result <- loaded[R]{r: r, took: took, err: err}
			cancel() // after the result: who sees the context end by this finds the result
			leave()
		},
	)
	select {
	case got := <-result:
		return got.answer(ctx)
	case <-ctx.Done():
	}
	select {
	case got := <-result:
		return got.answer(ctx)
	default:
		return r, time.Since(begun), ended(ctx)
	}
}

// answer is what the load is answered with. One that failed because Close ended its context says so, whatever it made of that.
func (l loaded[R]) answer(ctx context.Context) (R, time.Duration, error) {
	if l.err != nil && errors.Is(context.Cause(ctx), ErrClosed) {
		return l.r, l.took, ended(ctx)
	}
	return l.r, l.took, l.err
}

// Close refuses new loads and those at the gate with ErrClosed, ends the contexts of the running ones with the cause ErrClosed, waits
// for them until ctx ends, and returns how many have not returned: loaders that ignore their context. It may be called again.
func (l *Loads) Close(ctx context.Context) (left int) {
	l.gate.Close()
	return l.work.close(ctx)
}
