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
	next  time.Time     // it is not tried again before; zero: it was not tried yet
}

// orphans are released in the background, a few at a time. At most orphanBound wait for it: beyond that an orphan is left
// to end by itself, a place in the queue within entryTime, a grant within the lease. It may be used concurrently.
//
// A worker tries an orphan once. If nothing answers, the orphan waits behind those that were not tried yet: one master of a Cluster that is away
// must not take all workers while others answer.
type orphans struct {
	book *lockbook

	mu      sync.Mutex
	waiting []orphan // not tried yet, oldest first
	again   []orphan // tried and not answered; in the order of next
	workers int
	more    chan struct{} // room for one: wakes a worker that rests
	idle    chan struct{} // closed when the last worker leaves; nil: nobody waits for that
}

func newOrphans(b *lockbook) *orphans { return &orphans{book: b, more: make(chan struct{}, 1)} }

// add lets o be released in the background. It does not block.
func (s *orphans) add(o orphan) {
	o.until = time.Now().Add(s.book.lease + entryTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roomLocked() {
		return
	}
	s.waiting = append(s.waiting, o)
	if s.workers >= orphanWorkers {
		s.rouseLocked()
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
		s.work(ctx)
	}()
}

func (s *orphans) roomLocked() bool { return len(s.waiting)+len(s.again) < orphanBound }

// rouseLocked wakes a worker if one rests.
func (s *orphans) rouseLocked() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// work tries orphans until none is left or ctx ends.
func (s *orphans) work(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o, pause, left := s.next(ctx)
		switch {
		case !left:
			return
		case pause > 0:
			timer.Reset(pause)
			select {
			case <-timer.C:
			case <-s.more:
			case <-ctx.Done():
			}
		default:
			if _, unanswered := s.book.release(ctx, o); unanswered != nil {
				s.retry(o)
			}
		}
	}
}

// next takes the orphan whose turn it is, or says how long nobody's turn comes. If left is false nothing is left, or ctx has ended, and the worker
// that asked is counted out.
func (s *orphans) next(ctx context.Context) (o orphan, pause time.Duration, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for ctx.Err() == nil && len(s.waiting)+len(s.again) > 0 {
		from := &s.waiting
		if len(s.waiting) == 0 {
			from = &s.again
			if pause = s.again[0].next.Sub(now); pause > 0 {
				return orphan{}, pause, true
			}
		}
		o = (*from)[0]
		(*from)[0] = orphan{}
		*from = (*from)[1:]
		if now.Before(o.until) {
			if len(s.waiting) > 0 {
				s.rouseLocked() // one that came while the last one was roused
			}
			return o, 0, true
		}
	}
	s.waiting, s.again = nil, nil
	s.workers--
	if s.workers == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	return orphan{}, 0, false
}

// retry lets o, which was not answered, be tried again later, if there is room.
func (s *orphans) retry(o orphan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.next = time.Now().Add(s.book.retryTime()); s.roomLocked() {
		s.again = append(s.again, o)
	}
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

// sendRelease releases what o has, again and again until it is answered, until is past or ctx ends. It returns nil, ErrLeaseLost, errUnclear, what
// the backend said that refuses it, or an error that says that it was not answered.
func (b *lockbook) sendRelease(ctx context.Context, o orphan) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ; first = false {
		answer, unanswered := b.release(ctx, o)
		switch {
		case unanswered == nil && !first && errors.Is(answer, ErrLeaseLost):
			return errUnclear
		case unanswered == nil:
			return answer
		case ctx.Err() != nil || !time.Now().Before(o.until):
			return fmt.Errorf("rebuild: release of %q was not answered, its lease ends by itself: %w", o.claim.Name, unanswered)
		}
		timer.Reset(b.retryTime())
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// release is one call that releases what o has. unanswered is why nobody knows what became of it, and it may be sent again; else answer stands.
func (b *lockbook) release(ctx context.Context, o orphan) (answer, unanswered error) {
	limited, cancel := context.WithTimeout(ctx, callTime(b.lease))
	defer cancel()
	err := ours(ctx, limited, b.backend.Release(limited, o.claim, o.token, o.burn))
	switch {
	case err == nil:
		return nil, nil
	case errors.Is(err, ErrLeaseLost):
		return ErrLeaseLost, nil
	case ctx.Err() != nil || repeatable(ctx, err):
		return nil, err
	default:
		return err, nil
	}
}

// retryTime is the pause after a renewal or a release that was not answered.
func (b *lockbook) retryTime() time.Duration { return b.lease / 10 }
