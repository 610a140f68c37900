package rebuild

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// How what is nobody's any more is given back in the background: chosen; not tuned.
const (
	orphanBound   = 1024 // that wait to be released
	orphanWorkers = 4    // releases at once
)

// orphan is an owner without a caller: its place in the queue, its grant, and what it may be granted yet are to go.
type orphan struct {
	claim LockClaim
	token uint64        // 0: any
	burn  time.Duration // > 0: something that it asked for was not answered
	until time.Time     // then all of it is over by itself
}

// orphans are released in the background, a few at a time. At most orphanBound wait for it: beyond that an orphan is left
// to end by itself, a place in the queue within entryTime, a grant within the lease. It may be used concurrently.
type orphans struct {
	book *lockbook

	mu      sync.Mutex
	waiting []orphan
	workers int
	idle    chan struct{} // closed when the last worker leaves; nil: nobody waits for that
}

// add lets o be released in the background. It does not block.
func (s *orphans) add(o orphan) {
	o.until = time.Now().Add(s.book.lease + entryTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) >= orphanBound {
		return
	}
	s.waiting = append(s.waiting, o)
	if s.workers >= orphanWorkers {
		return
	}
	ctx, leave, err := s.book.releases.join(context.Background())
	if err != nil { // closed: nobody is there to do it
		s.waiting = nil
		return
	}
	s.workers++
	go func() {
		defer leave()
		for o, ok := s.next(); ok; o, ok = s.next() {
			_ = s.book.sendRelease(ctx, o.claim, o.token, o.burn, o.until)
		}
	}()
}

// next takes the oldest orphan that is not over; without one the worker that asked leaves.
func (s *orphans) next() (orphan, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.waiting) > 0 {
		o := s.waiting[0]
		s.waiting[0] = orphan{}
		s.waiting = s.waiting[1:]
		if time.Now().Before(o.until) {
			return o, true
		}
	}
	s.waiting = nil
	s.workers--
	if s.workers == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	return orphan{}, false
}

// drain blocks until nothing is left to be released or ctx ends.
func (s *orphans) drain(ctx context.Context) {
	s.mu.Lock()
	if s.workers == 0 {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// sendRelease releases what the owner of c has, again and again until it is answered, until is past or ctx ends.
func (b *lockbook) sendRelease(ctx context.Context, c LockClaim, token uint64, burn time.Duration, until time.Time) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, callTime(b.lease))
		err := b.backend.Release(limited, c, token, burn)
		cancel()
		if err == nil || errors.Is(err, ErrLeaseLost) || ctx.Err() == nil && !repeatable(ctx, err) {
			return err
		}
		if ctx.Err() != nil || !time.Now().Before(until) {
			return fmt.Errorf("rebuild: release of %q was not answered, its lease ends by itself: %w", c.Name, err)
		}
		timer.Reset(b.retryTime())
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// retryTime is the pause after a renewal or a release that was not answered.
func (b *lockbook) retryTime() time.Duration { return b.lease / 10 }
