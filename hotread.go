package tiercache

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
)

// hotReads are the reads of Redis for hot keys: one at a time for each key in this process. What many ask for at once shares a round trip
// anyway while it is under way. That leaves a gap, which the callers of a hot key find:
//  1. memory's copy is over; A asks Redis
//  2. the answer is there, so nobody joins A's round trip any more; A has not kept it yet
//  3. B finds nothing in memory, and asks Redis
//
// So B waits for A and looks at memory again.
type hotReads struct {
	keys atomic.Pointer[map[string]*hotRead] // copied on write; nil while nothing is hot
}

// hotRead is one hot key's turn to be read.
type hotRead struct {
	mu   sync.Mutex
	done chan struct{} // closed when the read that is under way has ended; nil: none is
}

// of returns the key's turn; nil if it is not hot.
func (h *hotReads) of(id string) *hotRead {
	keys := h.keys.Load()
	if keys == nil {
		return nil
	}
	return (*keys)[id]
}

// set notes whether a key is hot. It is called by one goroutine at a time.
func (h *hotReads) set(id string, hot bool) {
	keys := make(map[string]*hotRead)
	if old := h.keys.Load(); old != nil {
		maps.Copy(keys, *old)
	}
	if hot {
		keys[id] = &hotRead{}
	} else {
		delete(keys, id)
	}
	if len(keys) == 0 {
		h.keys.Store(nil)
		return
	}
	h.keys.Store(&keys)
}

// enter takes the turn, or waits once for the end of the read that has it: whoever finds nothing in memory after that reads beside others, so
// that nobody waits for a queue of reads that fail. leave is to be called at the end in any case; the error is that of ctx.
func (r *hotRead) enter(ctx context.Context) (leave func(), _ error) {
	r.mu.Lock()
	under := r.done
	if under == nil {
		r.done = make(chan struct{})
	}
	r.mu.Unlock()
	if under == nil {
		return r.leave, nil
	}
	select {
	case <-under:
		return func() {}, nil
	case <-ctx.Done():
		return func() {}, ctx.Err()
	}
}

func (r *hotRead) leave() {
	r.mu.Lock()
	close(r.done)
	r.done = nil
	r.mu.Unlock()
}
