package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// The source stands for a database: so many workers, each busy with one query at a time, and a queue in front of them, first come,
// first served, without an end. What matters of a database under a flood is here: it has a capacity, more callers than it can serve
// wait for each other, and the query of a caller who has left is done all the same. What is not here flatters it: no query slows down
// another one, and nothing is ever refused.
//
//	src := newSource(sourceOptions{workers: 8, mean: 8 * time.Millisecond, spread: 0.5, seed: 1})
//	defer src.close()
//	cache, err := tiercache.New(tiercache.Options[string, string]{…, Load: src.load})
//	…
//	src.stats().peakQueue // and src.perSecond() for a picture

// sourceOptions describe a source. The zero seed is a seed.
type sourceOptions struct {
	workers int                                          // queries at once, ≥ 1
	mean    time.Duration                                // of a query's time in a worker, > 0
	spread  float64                                      // share of the mean, [0,1]: times are uniform in mean·(1 ± spread); 0: all alike
	seed    uint64                                       // of the times
	row     func(key string) (value string, exists bool) // nil: every key has the row "row of " + key
	missing error                                        // what load returns for a row that is not there; nil: errNoRow
}

var (
	errNoRow        = errors.New("the source has no such row")
	errSourceClosed = errors.New("the source is closed")
)

// source is a queue and its workers. All methods may be called concurrently.
type source struct {
	o sourceOptions

	mu     sync.Mutex
	work   *sync.Cond // there is a query, or the source is closed
	times  *rand.Rand
	queue  []*query
	count  sourceStats
	began  time.Time
	steps  []sourceStep // a second each
	closed bool
	ended  sync.WaitGroup // of the workers
}

// query is one call of load.
type query struct {
	key     string
	arrived time.Time
	takes   time.Duration
	done    chan struct{} // closed when value and err stand
	value   string
	err     error
}

// sourceStats is what a source was asked, since it began or since the last reset.
type sourceStats struct {
	loads       uint64 // queries that arrived
	absent      uint64 // of those done, the ones that found no row
	abandoned   uint64 // callers that left before their query was done
	running     int    // now
	queue       int    // now
	peakRunning int
	peakQueue   int
}

// sourceStep is one second of a source.
type sourceStep struct {
	loads       uint64 // arrived
	done        uint64
	peakQueue   int
	peakRunning int
}

// maxSteps bounds a series: what happens later is counted in the last step.
const maxSteps = 24 * 3600

// newSource returns a source whose workers wait for queries until close. Wrong options are a mistake of the scenario: it panics.
func newSource(o sourceOptions) *source {
	if o.workers < 1 || o.mean <= 0 || o.spread < 0 || o.spread > 1 {
		panic(fmt.Sprintf("bench: source of %d workers, %v ± %v", o.workers, o.mean, o.spread))
	}
	if o.row == nil {
		o.row = func(key string) (string, bool) { return "row of " + key, true }
	}
	if o.missing == nil {
		o.missing = errNoRow
	}
	s := &source{o: o, times: rand.New(rand.NewPCG(o.seed, 0x736f75726365)), began: time.Now()} //nolint:gosec // a workload, not a secret
	s.work = sync.NewCond(&s.mu)
	for range o.workers {
		s.ended.Go(s.serve)
	}
	return s
}

// capacity is how many queries a second the workers can do at most.
func (s *source) capacity() float64 { return float64(s.o.workers) / s.o.mean.Seconds() }

func (s *source) String() string {
	return fmt.Sprintf("source: %d workers × %v ± %.0f %% = %.0f loads/s", s.o.workers, s.o.mean, 100*s.o.spread, s.capacity())
}

// load queues a query and waits for its row. It returns the cause of ctx when that ends first; the query stays in the queue, or in its
// worker, as one that was sent to a database does.
func (s *source) load(ctx context.Context, key string) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	q, err := s.enqueue(key)
	if err != nil {
		return "", err
	}
	select {
	case <-q.done:
		return q.value, q.err
	case <-ctx.Done():
		s.mu.Lock()
		s.count.abandoned++
		s.mu.Unlock()
		return "", context.Cause(ctx)
	}
}

func (s *source) enqueue(key string) (*query, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errSourceClosed
	}
	q := &query{key: key, arrived: time.Now(), done: make(chan struct{})}
	q.takes = time.Duration(float64(s.o.mean) * (1 + s.o.spread*(2*s.times.Float64()-1)))
	s.queue = append(s.queue, q)
	s.count.loads++
	s.count.queue = len(s.queue)
	s.stepLocked(q.arrived).loads++
	s.work.Signal()
	return q, nil
}

// serve is one worker. It is busy until the times of its queries are over, whenever its timers fire: a timer that is late makes one
// query late and takes nothing from the capacity.
func (s *source) serve() {
	var busyUntil time.Time
	for {
		q := s.next()
		if q == nil {
			return
		}
		if busyUntil.Before(q.arrived) {
			busyUntil = q.arrived
		}
		busyUntil = busyUntil.Add(q.takes)
		time.Sleep(time.Until(busyUntil))
		s.finish(q)
	}
}

// next waits for a query; nil: there will be none.
func (s *source) next() *query {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 {
		if s.closed {
			return nil
		}
		s.work.Wait()
	}
	// A query that a worker takes at once has not waited: the peak is of those that no worker was free for.
	q := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	s.count.queue = len(s.queue)
	s.count.running++
	s.count.peakRunning = max(s.count.peakRunning, s.count.running)
	now := s.stepLocked(time.Now())
	now.peakRunning = max(now.peakRunning, s.count.running)
	return q
}

func (s *source) finish(q *query) {
	value, exists := s.o.row(q.key)
	if q.value = value; !exists {
		q.value, q.err = "", s.o.missing
	}
	s.mu.Lock()
	s.count.running--
	if !exists {
		s.count.absent++
	}
	s.stepLocked(time.Now()).done++
	s.mu.Unlock()
	close(q.done)
}

// stepLocked returns the step of a moment, and notes how long the queue is in it.
func (s *source) stepLocked(now time.Time) *sourceStep {
	at := min(max(int(now.Sub(s.began)/time.Second), 0), maxSteps-1)
	for len(s.steps) <= at {
		s.steps = append(s.steps, sourceStep{peakQueue: s.waitingLocked(), peakRunning: s.count.running})
	}
	step := &s.steps[at]
	step.peakQueue = max(step.peakQueue, s.waitingLocked())
	s.count.peakQueue = max(s.count.peakQueue, s.waitingLocked())
	return step
}

// waitingLocked is how many queries have no worker: one in the queue whose worker is only about to take it does not wait.
func (s *source) waitingLocked() int { return max(len(s.queue)-(s.o.workers-s.count.running), 0) }

// stats returns the counts so far.
func (s *source) stats() sourceStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// reset begins the counts and the series anew. What waits or runs stays.
func (s *source) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count = sourceStats{running: s.count.running, queue: len(s.queue), peakRunning: s.count.running, peakQueue: s.waitingLocked()}
	s.began, s.steps = time.Now(), nil
}

// perSecond returns the series since the source began or was reset: one step a second, quiet ones included.
func (s *source) perSecond() []sourceStep {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(time.Now())
	return append([]sourceStep(nil), s.steps...)
}

// close refuses what waits, lets the workers end what they have begun, and waits for them. It is idempotent.
func (s *source) close() {
	s.mu.Lock()
	s.closed = true
	for _, q := range s.queue {
		q.err = errSourceClosed
		close(q.done)
	}
	s.queue, s.count.queue = nil, 0
	s.work.Broadcast()
	s.mu.Unlock()
	s.ended.Wait()
}
