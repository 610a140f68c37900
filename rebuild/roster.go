package rebuild

import (
	"context"
	"sync"
	"sync/atomic"
)

// roster knows what is at work: it counts it, ends its contexts at close and says when the last one left. After close nobody joins.
// Its lock is a leaf: nothing is called under it.
type roster struct {
	closed atomic.Bool // set under mu

	mu   sync.Mutex
	next uint64
	ends map[uint64]context.CancelCauseFunc // of all who joined and have not left
	idle chan struct{}                      // closed when closed and nobody is left
}

func newRoster() *roster {
	return &roster{ends: map[uint64]context.CancelCauseFunc{}, idle: make(chan struct{})}
}

// join returns a context that ends with ctx, at close (cause ErrClosed) or by leave, which the joiner must call and may call twice.
func (w *roster) join(ctx context.Context) (joined context.Context, leave func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed.Load() {
		return nil, nil, ErrClosed
	}
	joined, end := context.WithCancelCause(ctx)
	id := w.next
	w.next++
	w.ends[id] = end
	return joined, func() {
		end(nil)
		w.leave(id)
	}, nil
}

func (w *roster) leave(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, here := w.ends[id]; !here {
		return
	}
	delete(w.ends, id)
	if w.closed.Load() && len(w.ends) == 0 {
		close(w.idle)
	}
}

// close ends all contexts, waits until all have left or ctx ends, and returns how many have not left. It may be called again.
func (w *roster) close(ctx context.Context) (left int) {
	for _, end := range w.shut() {
		end(ErrClosed)
	}
	select {
	case <-w.idle:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ends)
}

func (w *roster) shut() []context.CancelCauseFunc {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed.Swap(true) {
		return nil
	}
	if len(w.ends) == 0 {
		close(w.idle)
	}
	ends := make([]context.CancelCauseFunc, 0, len(w.ends))
	for _, end := range w.ends {
		ends = append(ends, end)
	}
	return ends
}
