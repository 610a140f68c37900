package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
)

// GetMany of 64 keys: what a page with a list asks for. Counts only: round trips are what the client was given to send at once, counted
// by a hook in it, if a key of the batch is named in them; heartbeats name none. Load calls are the loader's own count. The keys of
// every call are new ones for the misses, and the same again for the hits; memory is off, so that hits are Redis' hits.

const manyKeys = 64

func getMany(ctx context.Context, e *env) (_ []Row, err error) {
	trips := &tripCounter{needle: "{many-"}
	shared, stop, err := connectWith(ctx, e.server.addr, patience, trips)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var calls, loaded atomic.Int64
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name:      "many",
		Shared:    shared,
		MemoryTTL: -1,
		TTL:       time.Hour,
		LoadMany: func(_ context.Context, keys []string) (map[string]string, error) {
			calls.Add(1)
			loaded.Add(int64(len(keys)))
			rows := make(map[string]string, len(keys))
			for _, k := range keys {
				rows[k] = "row of " + k
			}
			return rows, nil
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()

	rounds := pick(e, 50, 10)
	var missTrips, missCalls, hitTrips []float64
	for round := range rounds + 1 {
		keys := make([]string, manyKeys)
		for i := range keys {
			keys[i] = fmt.Sprintf("many-%03d-%02d", round, i)
		}
		miss, callsMissed, err := countMany(ctx, cache, keys, trips, &calls)
		if err != nil {
			return nil, err
		}
		hit, callsHit, err := countMany(ctx, cache, keys, trips, &calls)
		if err != nil {
			return nil, err
		}
		if callsHit != 0 {
			return nil, fmt.Errorf("round %d: %g load calls for keys that were just filled", round, callsHit)
		}
		if round > 0 { // the first one dials and loads scripts
			missTrips, missCalls, hitTrips = append(missTrips, miss), append(missCalls, callsMissed), append(hitTrips, hit)
		}
	}
	if want := int64((rounds + 1) * manyKeys); loaded.Load() != want {
		return nil, fmt.Errorf("%d keys were loaded, %d expected", loaded.Load(), want)
	}
	detail := fmt.Sprintf("worst of %d calls", rounds)
	return []Row{
		{What: "round trips, 64 hits", Value: slices.Max(hitTrips), Budget: atMost(1), Detail: detail, Rounds: hitTrips},
		{What: "load calls, 64 misses", Value: slices.Max(missCalls), Budget: atMost(1), Detail: detail, Rounds: missCalls},
		{What: "round trips, 64 misses", Value: slices.Max(missTrips), Budget: atMost(3), Detail: detail + "; read, read-or-lease, fill", Rounds: missTrips},
	}, nil
}

// countMany returns the round trips and load calls of one GetMany.
func countMany(ctx context.Context, cache *tiercache.Cache[string, string], keys []string, trips *tripCounter, calls *atomic.Int64) (t, c float64, _ error) {
	tripsBefore, callsBefore := trips.n.Load(), calls.Load()
	found, err := cache.GetMany(ctx, keys)
	if err != nil {
		return 0, 0, err
	}
	if len(found) != len(keys) {
		return 0, 0, fmt.Errorf("GetMany of %d keys found %d", len(keys), len(found))
	}
	return float64(trips.n.Load() - tripsBefore), float64(calls.Load() - callsBefore), nil
}

// tripCounter is a hook that counts round trips in which an argument contains needle.
type tripCounter struct {
	needle string
	n      atomic.Int64
}

func (t *tripCounter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (t *tripCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		t.count(cmd)
		return next(ctx, cmd)
	}
}

func (t *tripCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		t.count(cmds...)
		return next(ctx, cmds)
	}
}

func (t *tripCounter) count(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		for _, arg := range cmd.Args() {
			if strings.Contains(text(arg), t.needle) {
				t.n.Add(1)
				return
			}
		}
	}
}

// text returns an argument as it is sent, for the kinds of argument that a key may be.
func text(arg any) string {
	switch a := arg.(type) {
	case string:
		return a
	case *string:
		return *a
	case []byte:
		return string(a)
	}
	return ""
}
