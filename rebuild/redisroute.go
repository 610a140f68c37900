package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// route returns the client of the master that has the key, as far as it is known; nil: the caller's client finds it. It waits for the
// network only while the cluster is not known yet.
func (b *RedisBackend) route(ctx, limited context.Context, key string) (*redis.Client, error) {
	if b.cluster == nil {
		return b.single, nil
	}
	if err := b.learn(ctx, limited, key); err != nil {
		return nil, err
	}
	return b.cluster.MasterForKey(limited, key)
}

// learn waits until the client knows the cluster. One goroutine asks, however many wait.
func (b *RedisBackend) learn(ctx, limited context.Context, key string) error {
	b.mu.Lock()
	if b.known {
		b.mu.Unlock()
		return nil
	}
	if b.learning == nil {
		b.learning = make(chan struct{})
		go b.ask(key, b.learning)
	}
	done := b.learning
	b.mu.Unlock()
	select {
	case <-done:
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.known {
			return nil
		}
		return b.learnErr
	case <-limited.Done():
		return late(ctx)
	}
}

func (b *RedisBackend) ask(key string, done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), b.callTimeout)
	defer cancel()
	_, err := b.cluster.MasterForKey(ctx, key)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known, b.learnErr, b.learning = err == nil, err, nil
	close(done)
}

// refusal returns what the server itself said, "" if err is none of its errors.
func refusal(err error) string {
	var reply redis.Error
	if errors.As(err, &reply) {
		return reply.Error()
	}
	return ""
}

// hasMoved reports whether the server said that another has the slot.
func hasMoved(err error) bool {
	said := refusal(err)
	return strings.HasPrefix(said, "MOVED ") || strings.HasPrefix(said, "ASK ")
}

// passing are the beginnings of Redis's errors that pass by themselves: a failover, a restart or a migration is under way, too few replicas
// are connected (min-replicas-to-write), somebody's script takes long, the server has no connection left. READONLY can also stand inside of an
// error: servers before 7 wrap what a script met.
var passing = []string{
	"READONLY ", "LOADING ", "TRYAGAIN ", "CLUSTERDOWN ", "MASTERDOWN ", "NOREPLICAS ", "BUSY ", "ERR max number of clients reached",
}

// transient reports whether err passes by itself. What is no error of the server is one of the connection, or of the client's pool. A
// client that was closed stays so.
func transient(err error) bool {
	said := refusal(err)
	if said == "" {
		return !errors.Is(err, redis.ErrClosed)
	}
	return strings.Contains(said, "-READONLY ") || slices.ContainsFunc(passing, func(p string) bool { return strings.HasPrefix(said, p) })
}

// explain makes the client's error one that says whether repeating is of use.
func explain(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrUnavailable):
		return err
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		// A time-out of ours. The caller's own is not over: the error must not look as if it were.
		return fmt.Errorf("%w: %v", ErrUnavailable, err) //nolint:errorlint // for that reason
	case hasMoved(err) || transient(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("rebuild: redis: %w", err)
	}
}
