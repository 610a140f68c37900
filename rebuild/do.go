package rebuild

import (
	"context"
	"errors"
)

// Do calls fn with m's lock of name held, and returns what it returned. It blocks as Lock does, whose errors it returns without having
// called fn. The context of fn ends with the lease, and with ctx; it carries the lease, for TokenOf.
//
// If the lease was lost, ErrLeaseLost is joined to what fn returned, nil or not: what fn wrote may have met another holder's writes.
// Whether fn returns, panics or leaves by runtime.Goexit, the lock is released. A release that is not answered, or only when it is repeated, is
// no error of Do: the lease ends by itself, or has ended.
func Do(ctx context.Context, m *Mutex, name string, fn func(context.Context) error) (err error) {
	lease, err := m.Lock(ctx, name)
	if err != nil {
		return err
	}
	within, cancel := context.WithCancelCause(lease.Context())
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer func() {
		stop()
		cancel(nil)
		if lost := lease.Unlock(ctx); errors.Is(lost, ErrLeaseLost) && !errors.Is(err, ErrLeaseLost) {
			err = errors.Join(err, ErrLeaseLost)
		}
	}()
	return fn(within)
}
