package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tiercache/tiercache"
)

// The event: how long another process goes on answering what was just invalidated. The clock starts when Invalidate is called, so
// the round trip of its script is part of the figure, and stops when the other process' cache has dropped its copy. Both read one
// machine's clock. One invalidation at a time: it is the delay of an idle system, not of a full one.

type eventAnswer struct {
	Holds bool      `json:"holds,omitempty"` // answer to a key: the process has a copy now
	Seen  time.Time `json:"seen"`            // then: when it was dropped
}

func eventDelay(ctx context.Context, e *env) (_ []Row, err error) {
	c, err := startWorker(ctx, "event", e.server.addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	cache, stop, err := eventCache(ctx, e.server.addr, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	rounds := pick(e, 1000, 100)
	var fromCall, fromReturn []float64
	for round := -20; round < rounds; round++ {
		key := fmt.Sprintf("event-%d", round)
		var a eventAnswer
		if err := c.ask(key, &a); err != nil {
			return nil, err
		}
		called := time.Now()
		if err := cache.Invalidate(ctx, key); err != nil {
			return nil, err
		}
		returned := time.Now()
		if err := c.ask(nil, &a); err != nil {
			return nil, err
		}
		if round >= 0 { // the first ones dial and load scripts
			fromCall = append(fromCall, a.Seen.Sub(called.Round(0)).Seconds()*1e3)
			fromReturn = append(fromReturn, a.Seen.Sub(returned.Round(0)).Seconds()*1e3)
		}
	}
	detail := fmt.Sprintf("%d invalidations", rounds)
	return []Row{
		{What: "seen after the call, median", Value: median(fromCall), Unit: "ms", Low: quantile(fromCall, 0.1), High: quantile(fromCall, 0.9), Budget: atMost(0.2), Detail: detail, Rounds: fromCall},
		valueRow("seen after the call, p99", quantile(fromCall, 0.99), "ms", atMost(1), detail),
		valueRow("seen after the call, slowest", quantile(fromCall, 1), "ms", budget{}, detail),
		valueRow("seen after the return, median", median(fromReturn), "ms", budget{}, "below 0: before Invalidate returned"),
	}, nil
}

func eventCache(ctx context.Context, addr string, hooks *tiercache.Hooks) (*tiercache.Cache[string, string], func() error, error) {
	shared, stop, err := connect(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name:   "event",
		Shared: shared,
		Hooks:  hooks,
		Load:   func(_ context.Context, key string) (string, error) { return "row of " + key, nil },
	})
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return cache, func() error { return errors.Join(cache.Close(), stop()) }, nil
}

// eventWorker is the other process. For each key it is given it takes a copy, says so, and says when the copy was dropped.
func eventWorker(ctx context.Context, addr string, l *line) (err error) {
	seen := make(chan time.Time, 16)
	hooks := &tiercache.Hooks{Invalidated: func(_ uint64, here bool) {
		if here {
			return
		}
		select {
		case seen <- time.Now():
		default: // nobody waits any more
		}
	}}
	cache, stop, err := eventCache(ctx, addr, hooks)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for {
		var key string
		if err := l.hear(&key); err != nil {
			return err
		}
		if _, err := cache.Get(ctx, key); err != nil {
			return err
		}
		if err := l.say(eventAnswer{Holds: true}); err != nil {
			return err
		}
		select {
		case at := <-seen:
			if err := l.say(eventAnswer{Seen: at}); err != nil {
				return err
			}
		case <-time.After(5 * time.Second):
			return fmt.Errorf("the event of %s did not come within 5 s", key)
		}
	}
}
