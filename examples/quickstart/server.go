package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// startRedis returns the address of a Redis-protocol server: the one at addr if it answers, else one embedded in this program where
// addr is empty. Stop ends the embedded one; in a real one it deletes the keys that begin with prefix, which are this run's.
func startRedis(ctx context.Context, addr, prefix string) (_ string, stop func() error, _ error) {
	if addr == "" {
		server := miniredis.NewMiniRedis()
		if err := server.Start(); err != nil {
			return "", nil, fmt.Errorf("embedded Redis: %w", err)
		}
		stopClock := runClock(server)
		return server.Addr(), func() error { stopClock(); server.Close(); return nil }, nil
	}
	if err := answers(ctx, addr); err != nil {
		return "", nil, fmt.Errorf("-redis %s: no Redis server answers there: %w", addr, err)
	}
	return addr, func() error { return deleteKeys(addr, prefix) }, nil
}

// runClock has the keys of the embedded server expire by themselves, as those of a real one do. Its own way to do so looks at all keys
// on each command, which costs more than the command once there are some thousand; ten looks a second are enough for a demonstration.
func runClock(server *miniredis.Miniredis) (stop func()) {
	ended, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case now := <-tick.C:
				server.FastForward(now.Sub(last))
				last = now
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// answers fails if no Redis server answers at addr within two seconds. It dials by itself first, because the client would try for
// longer and log each attempt.
func answers(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	conn.Close() //nolint:errcheck // only to see that somebody listens
	rdb := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ContextTimeoutEnabled: true})
	defer rdb.Close() //nolint:errcheck // nothing was written
	return rdb.Ping(ctx).Err()
}

// deleteKeys removes the keys that begin with prefix, also when the run was interrupted. They would expire by themselves; this is for
// a server that others use too.
func deleteKeys(addr, prefix string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close() //nolint:errcheck // the keys are gone or the error says so
	keys := rdb.Scan(ctx, 0, prefix+":*", 1000).Iterator()
	for keys.Next(ctx) {
		if err := rdb.Unlink(ctx, keys.Val()).Err(); err != nil {
			return fmt.Errorf("delete this run's keys in %s: %w", addr, err)
		}
	}
	return keys.Err()
}
