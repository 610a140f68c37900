package layers

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

func openRedis(t *testing.T, rdb redis.UniversalClient) *Redis {
	t.Helper()
	r, err := NewRedis(t.Context(), rdb, RedisOptions{ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func openSpace(t *testing.T, r *Redis, o SpaceOptions) *Space {
	t.Helper()
	s, err := r.Open(o)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// Property: every mistake of the options is reported at once; what is zero has its default.
func TestSpaceOptionsAreChecked(t *testing.T) {
	o := SpaceOptions{Window: -1, LeaseTime: -1, PendTime: -1, BackoffBase: -1, BackoffMax: -1}
	err := o.check()
	for _, part := range []string{"name", "Window", "LeaseTime", "PendTime", "BackoffBase", "BackoffMax"} {
		require.ErrorContains(t, err, part)
	}
	o = SpaceOptions{Name: strings.Repeat("n", longKey+1)}
	require.ErrorContains(t, o.check(), "201 bytes")
	o = SpaceOptions{Name: "n"}
	require.NoError(t, o.check())
	require.Equal(t, SpaceOptions{
		Name: "n", Window: time.Second, LeaseTime: 3 * time.Second, PendTime: 30 * time.Second,
		BackoffBase: 100 * time.Millisecond, BackoffMax: time.Second,
	}, o)
}

// Property: a name is open once on one Redis, and free again after Close.
func TestANameIsOpenOnce(t *testing.T) {
	r := openRedis(t, redistest.Shared(t).Client(t))
	o := SpaceOptions{Name: redistest.Name(t)}
	s, err := r.Open(o)
	require.NoError(t, err)
	_, err = r.Open(o)
	require.Error(t, err)
	s.Close()
	s, err = r.Open(o)
	require.NoError(t, err)
	s.Close()
	_, err = r.Open(SpaceOptions{})
	require.Error(t, err)
}

// Property: lives are exact to the millisecond: Redis drops a value when its envelope says, and no reader keeps it longer.
func TestShortLivesEndWhenTheySay(t *testing.T) {
	server := redistest.Shared(t)
	if server.Embedded() {
		t.Skip("an embedded server keeps no time")
	}
	rdb := server.Client(t)
	s := NewShared[string](openSpace(t, openRedis(t, rdb), SpaceOptions{Name: redistest.Name(t)}), Raw, 0, Limits{})
	ctx := t.Context()
	for _, life := range []time.Duration{time.Nanosecond, time.Millisecond, 7 * time.Millisecond, 99 * time.Millisecond, 999 * time.Millisecond} {
		a := s.Acquire(ctx, Ask{ID: life.String(), Token: NewToken()})[0]
		require.NoError(t, a.Err)
		f, err := s.Encode(a.Lease, Entry[string]{Value: "v"}, Lives{Soft: life, Hard: life})
		require.NoError(t, err)
		key, err := s.valueKey(life.String())
		require.NoError(t, err)
		got := s.Fill(ctx, f)[0]
		require.NoError(t, got.Err)
		require.LessOrEqual(t, got.Hard.Sub(got.Born), max(life, time.Millisecond))
		pipe := rdb.Pipeline()
		end, raw := pipe.PExpireTime(ctx, key), pipe.Get(ctx, key)
		_, _ = pipe.Exec(ctx)
		if e, err := parseEnvelope(raw.Val()); err == nil { // it may have passed on a slow machine
			require.Equal(t, max(life, time.Millisecond).Milliseconds(), e.hard-e.stored)
			require.Equal(t, e.hard, end.Val().Milliseconds())
			require.Equal(t, e.hard, e.soft)
		}
		for begin := serverTime(t, rdb); serverTime(t, rdb).Sub(begin) <= life+time.Millisecond; {
			continue // the server's own clock decides
		}
		read, err := s.Get(ctx, life.String(), Mark{})
		require.NoError(t, err)
		require.Equal(t, Nothing, read.Kind, "after %v", life)
		require.False(t, time.Now().Before(got.Hard), "memory would outlive Redis")
	}
}

func serverTime(t *testing.T, rdb *redis.Client) time.Time {
	t.Helper()
	now, err := rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	return now
}

// Property: on a full Redis no lease is granted, and every kind of invalidation works all the same, as does the generation.
func TestInvalidationsWorkOnAFullRedis(t *testing.T) {
	server := redistest.Start(t)
	rdb := server.Client(t)
	s := NewShared[string](openSpace(t, openRedis(t, rdb), SpaceOptions{Name: "full"}), Raw, 0, Limits{})
	ctx := t.Context()
	modes := []Mode{Once, Begin, End, Announce, SetMode}
	var leases []Lease
	for _, mode := range modes {
		a := s.Acquire(ctx, Ask{ID: mode.String(), Token: NewToken()})[0]
		require.NoError(t, a.Err)
		f, err := s.Encode(a.Lease, Entry[string]{Value: "v"}, Lives{Soft: time.Hour, Hard: time.Hour})
		require.NoError(t, err)
		require.NoError(t, s.Fill(ctx, f)[0].Err)
		leases = append(leases, a.Lease)
	}
	server.Config(t, "maxmemory-policy", "noeviction")
	server.Config(t, "maxmemory", "1")
	a := s.Acquire(ctx, Ask{ID: "another", Token: NewToken()})[0]
	require.ErrorContains(t, a.Err, "OOM")
	for i, mode := range modes {
		got := s.Invalidate(ctx, mode, leases[i].Token, mode.String())[0]
		require.NoError(t, got.Err, "%v", mode)
		read, err := s.Get(ctx, mode.String(), Mark{})
		require.NoError(t, err)
		require.Equal(t, mode == Announce, read.Kind == Value, "%v left %v", mode, read.Kind)
		require.NoError(t, s.Invalidate(ctx, mode, leases[i].Token, "nothing here")[0].Err, "%v", mode)
	}
	require.NoError(t, s.beat(ctx))
	require.NoError(t, s.Move(ctx))
}

// Property: an event of an invalidation is heard only after the value is gone.
func TestAnEventComesAfterTheDelete(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	s := NewShared[string](openSpace(t, openRedis(t, rdb), SpaceOptions{Name: redistest.Name(t)}), Raw, 0, Limits{})
	ctx := t.Context()
	bus := rdb.Subscribe(ctx, s.channel)
	defer func() { _ = bus.Close() }()
	_, err := bus.Receive(ctx)
	require.NoError(t, err)
	key, err := s.valueKey("k")
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, rdb.Set(ctx, key, "anything", time.Minute).Err())
		require.NoError(t, s.Invalidate(ctx, Once, "", "k")[0].Err)
		for {
			m, err := bus.ReceiveMessage(ctx)
			require.NoError(t, err)
			if m.Payload[0] == eventInvalidated {
				break
			}
		}
		require.ErrorIs(t, rdb.Get(ctx, key).Err(), redis.Nil)
	}
}

// Property: what is wrong with one key or token is its own error, and nothing is sent for it; the other keys are served.
func TestErrorsArePerKey(t *testing.T) {
	s := NewShared[string](openSpace(t, openRedis(t, redistest.Shared(t).Client(t)), SpaceOptions{Name: redistest.Name(t)}), Raw, 0, Limits{})
	ctx, tooLong := t.Context(), strings.Repeat("k", MaxKeyBytes+1)
	got := s.Acquire(ctx, asksFor([]string{tooLong, "k"})...)
	require.ErrorIs(t, got[0].Err, ErrKeyTooLong)
	require.NoError(t, got[1].Err)
	renewed := s.Renew(ctx, Lease{ID: tooLong}, got[1].Lease)
	require.ErrorIs(t, renewed[0].Err, ErrKeyTooLong)
	require.Equal(t, Renewed{Held: true}, renewed[1])
	require.ErrorIs(t, s.Release(ctx, false, Lease{ID: tooLong}, got[1].Lease)[0], ErrKeyTooLong)
	require.ErrorIs(t, s.Invalidate(ctx, Once, "", "k", tooLong)[1].Err, ErrKeyTooLong)
	_, errs := s.GetMany(ctx, []string{"k", tooLong}, make([]Mark, 2))
	require.NoError(t, errs[0])
	require.ErrorIs(t, errs[1], ErrKeyTooLong)

	require.ErrorIs(t, s.Acquire(ctx, Ask{ID: "k", Token: "short"})[0].Err, ErrToken)
	require.ErrorIs(t, s.Fill(ctx, Fill{Lease: Lease{ID: "k"}})[0].Err, ErrToken)
	require.ErrorIs(t, s.Invalidate(ctx, Begin, "", "k")[0].Err, ErrToken)
	require.ErrorIs(t, s.RenewPending(ctx, "", "k")[0], ErrToken)
	require.Empty(t, s.Acquire(ctx))
	require.Empty(t, s.Invalidate(ctx, Once, ""))
}

// Property: without its master every call ends with an error, and nothing of Redis is answered before the generation is known.
func TestWithoutRedisEveryCallIsAnError(t *testing.T) {
	server := redistest.Start(t)
	rdb := server.Client(t, func(o *redis.Options) { o.MaxRetries = -1 })
	r, err := NewRedis(t.Context(), rdb, RedisOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	s := NewShared[string](openSpace(t, r, SpaceOptions{Name: "gone"}), Raw, 0, Limits{})
	server.Kill()
	ctx := t.Context()
	_, err = s.Get(ctx, "k", Mark{})
	require.Error(t, err)
	_, errs := s.GetMany(ctx, []string{"a", "b"}, make([]Mark, 2))
	require.Error(t, errs[0])
	require.Error(t, errs[1])
	require.Error(t, s.Acquire(ctx, Ask{ID: "k", Token: NewToken()})[0].Err)
	for _, mode := range []Mode{Once, Begin, End, Announce, SetMode} {
		require.Error(t, s.Invalidate(ctx, mode, NewToken(), "k")[0].Err)
	}
	require.Error(t, s.Move(ctx))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Get(ended, "k", Mark{})
	require.Error(t, err)
	server.Restart()
	require.Eventually(t, func() bool {
		read, err := s.Get(ctx, "k", Mark{})
		return err == nil && read.Kind == Nothing
	}, time.Minute, 10*time.Millisecond)
}

// Property: those who need the generation at the same time ask for it together, and only while it is not known.
func TestTheGenerationIsAskedForOnce(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	s := NewShared[string](openSpace(t, openRedis(t, rdb), SpaceOptions{Name: redistest.Name(t)}), Raw, 0, Limits{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := s.Get(t.Context(), "k", Mark{})
			require.NoError(t, err)
		})
	}
	wg.Wait()
	known := s.generation.Load()
	require.NotZero(t, known)
	key := s.genKey
	require.NoError(t, rdb.Del(t.Context(), key).Err())
	require.NoError(t, rdb.Set(t.Context(), key, 1, time.Minute).Err())
	got, err := s.known(t.Context())
	require.NoError(t, err)
	require.Equal(t, known, got)
}

// Property: the generation has moved when Cleared is called, once for each move; the first one that is learned clears nothing.
func TestClearedComesAfterTheGenerationMoved(t *testing.T) {
	r := openRedis(t, redistest.Shared(t).Client(t))
	var s *Space
	var seen []uint64
	s = openSpace(t, r, SpaceOptions{Name: redistest.Name(t), Events: Events{Cleared: func() { seen = append(seen, s.generation.Load()) }}})
	ctx := t.Context()
	require.NoError(t, s.beat(ctx))
	require.Empty(t, seen)
	require.NoError(t, s.Move(ctx))
	require.NoError(t, s.beat(ctx))
	require.NoError(t, s.Move(ctx))
	s.ear.do(func() {
		require.Len(t, seen, 2)
		require.True(t, slices.IsSorted(seen))
		require.Equal(t, s.generation.Load(), seen[1])
		s.adopt(seen[0], true, time.Now()) // an event that comes late
		s.adopt(exact, true, time.Now())
		require.Len(t, seen, 2)
	})
}

// Property: a Clear reaches the other processes by its event.
func TestAMoveIsHeardElsewhere(t *testing.T) {
	server := redistest.Shared(t)
	name, cleared := redistest.Name(t), make(chan struct{}, 10)
	a := openSpace(t, openRedis(t, server.Client(t)), SpaceOptions{Name: name})
	b := openSpace(t, openRedis(t, server.Client(t)), SpaceOptions{Name: name, Events: Events{Cleared: func() { cleared <- struct{}{} }}})
	require.NoError(t, b.beat(t.Context()))
	<-b.Heard()
	require.NoError(t, a.Move(t.Context()))
	<-cleared
	require.Equal(t, a.generation.Load(), b.generation.Load())
}
