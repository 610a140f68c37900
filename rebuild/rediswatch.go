package rebuild

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	watchPing    = time.Second   // how often the subscription's connection is asked for a sign of life; chosen; not tuned
	watchSilence = 3 * watchPing // how long nothing may arrive on it; chosen; not tuned
)

// Watch is Backend's: one connection with one subscription, made for it alone. It is made once; a loss ends Watch, since whatever was
// published in between is lost too. In Cluster it is made to any master, which passes on what is published on all of them; to another one
// the next time. A connection on which nothing arrives for three seconds, not even the answer to a ping, is lost.
//
// Errors: ctx's, ErrUnavailable for a loss, and what the server says if it does not allow the subscription.
func (b *RedisBackend) Watch(ctx context.Context, process string, ready func(), wake func(name, owner string)) error {
	if !processForm.MatchString(process) {
		return fmt.Errorf("rebuild: %q is no process: want 1 to 64 letters, digits, hyphens and underscores", process)
	}
	watching, stop := context.WithCancel(ctx)
	var pings sync.WaitGroup
	defer pings.Wait()
	defer stop()
	ps, done, err := b.subscription(watching)
	if err != nil {
		return b.deaf(ctx, err)
	}
	defer done()
	subscribing, cancel := context.WithTimeout(watching, 2*borrowed.DialTimeout)
	defer cancel()
	if err := ps.Subscribe(subscribing, b.front+process); err != nil {
		return b.deaf(ctx, err)
	}
	pings.Go(func() { ping(watching, stop, ps) })
	for {
		message, err := ps.ReceiveTimeout(watching, watchSilence)
		if err != nil { // also a time-out: it may have struck in the middle of a message
			return b.deaf(ctx, err)
		}
		switch m := message.(type) {
		case *redis.Subscription:
			ready()
		case *redis.Message:
			if owner, name, ok := strings.Cut(m.Payload, " "); ok {
				wake(name, owner)
			}
		}
	}
}

// ping asks for a sign of life until ctx ends; what cannot be written ends the watch.
func ping(ctx context.Context, stop context.CancelFunc, ps *redis.PubSub) {
	ticker := time.NewTicker(watchPing)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if ps.Ping(ctx) != nil {
				stop()
				return
			}
		}
	}
}

// subscription returns a PubSub of one connection to one master; done frees it.
func (b *RedisBackend) subscription(ctx context.Context) (ps *redis.PubSub, done func(), err error) {
	limited, cancel := context.WithTimeout(ctx, b.callTimeout)
	defer cancel()
	from, err := b.route(ctx, limited, strconv.FormatUint(rand.Uint64(), 36)) // in a cluster: some master
	if err != nil {
		return nil, nil, err
	}
	if from != nil {
		ps, done = borrowed.Subscribe(ctx, from)
		return ps, done, nil
	}
	ps = b.rdb.Subscribe(ctx) // a client of a kind unknown here: its own subscription, with its own time-outs
	stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
	return ps, func() { stop(); _ = ps.Close() }, nil
}

// deaf is the error of a watch that is over.
func (b *RedisBackend) deaf(ctx context.Context, why error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	err := explain(why)
	if b.cluster != nil && errors.Is(err, ErrUnavailable) {
		b.cluster.ReloadState(ctx) // in the background
	}
	return err
}
