package layers

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// ended checks that both goroutines of r's bus are gone.
func ended(t *testing.T, r *Redis) {
	t.Helper()
	for _, done := range r.bus.done {
		select {
		case <-done:
		default:
			t.Fatal("a goroutine of the bus outlived close")
		}
	}
}

// A name can be open once; closed, it can be opened again, and whoever closed it is told nothing more. The server keeps no subscription.
func TestNameIsOpenOnce(t *testing.T) {
	s := redistest.Shared(t)
	rdb := s.Client(t)
	r, _ := busOn(t, rdb, redistest.Name(t))
	first, old := openHearing(t, r, "users")
	_, err := r.Open(SpaceOptions{Name: "users"})
	require.ErrorContains(t, err, `"users" is already open`)

	_ = r.bus.event(first, eventInvalidated, "k")
	first.Close()
	second, l := openHearing(t, r, "users")
	first.Close() // closing again takes nothing away from the second
	fence(t, rdb, second, l)
	old.silent(t)
	e, ok := parseEvent(r.bus.event(second, eventInvalidated, "k"))
	require.True(t, ok)
	require.Equal(t, uint64(2), e.number, "a number was given twice")

	second.Close()
	other, l := openHearing(t, r, "orders") // what is sent for it is sent after the rest
	fence(t, rdb, other, l)
	n, err := rdb.PubSubNumSub(t.Context(), second.channel).Result()
	require.NoError(t, err)
	require.Zero(t, n[second.channel])
}

// A space that joins while the bus is up hears without waiting for a heartbeat, and everything is subscribed on one connection.
func TestManySpacesShareOneConnection(t *testing.T) {
	s := redistest.Start(t)
	r, _ := busOn(t, s.Client(t), redistest.Name(t))
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		all.Go(func() { openHearing(t, r, name) })
	}
	all.Wait()
	list, err := s.Client(t).Do(t.Context(), "client", "list", "type", "pubsub").Text()
	require.NoError(t, err)
	require.Regexp(t, `^[^\n]* sub=9 [^\n]*\n$`, list)
}

// Without a join there is no connection and no goroutine; after close nothing can join.
func TestBusStartsWithTheFirstJoinAndEndsWithClose(t *testing.T) {
	s := redistest.Start(t)
	r, _ := busOn(t, s.Client(t), redistest.Name(t))
	require.Nil(t, r.bus.stop)
	_, _ = openHearing(t, r, "users")
	require.NoError(t, r.Close())
	ended(t, r)
	require.NoError(t, r.Close())
	_, err := r.Open(SpaceOptions{Name: "orders"})
	require.ErrorIs(t, err, errBusClosed)

	never, _ := busOn(t, s.Client(t), redistest.Name(t))
	require.NoError(t, never.Close())
	require.Nil(t, never.bus.stop)
}

// A lost connection is an error at once: it is not made again behind the listener's back, which would tell the loss only once it is over.
func TestConnectionIsNotMadeAgainByTheClient(t *testing.T) {
	s := redistest.Start(t)
	var dials atomic.Int32
	r, _ := busOn(t, s.Client(t, func(o *redis.Options) {
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	}), redistest.Name(t))
	ps, done, err := r.bus.connect(t.Context(), 0)
	require.NoError(t, err)
	defer done()
	require.NoError(t, ps.Subscribe(t.Context(), r.bus.private))
	_, err = ps.ReceiveTimeout(t.Context(), patience)
	require.NoError(t, err)
	require.NoError(t, s.Client(t).ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
	_, err = ps.ReceiveTimeout(t.Context(), patience)
	require.Error(t, err)
	require.Equal(t, int32(1), dials.Load())
}

// A server that hangs, under a connection that stands or while one is made, holds up neither close nor what close must end; the
// client's own time-outs do not matter.
func TestHungServerDoesNotHoldUpClose(t *testing.T) {
	for name, hang := range map[string]func(t *testing.T, s *redistest.Server, r *Redis){
		"connected": func(t *testing.T, s *redistest.Server, r *Redis) {
			t.Helper()
			openHearing(t, r, "users")
			s.Stop()
		},
		"greeting": func(t *testing.T, s *redistest.Server, r *Redis) {
			t.Helper()
			s.Stop()
			openDeaf(t, r, "users")
			await(t, dialled(r))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			r, _ := busOn(t, s.Client(t, func(o *redis.Options) { o.ReadTimeout = time.Hour }), redistest.Name(t))
			hang(t, s, r)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				r.bus.close()
			}()
			await(t, closed)
			ended(t, r)
			s.Continue()
		})
	}
}

// dialled returns a channel that is closed once the listener is at work on a connection.
func dialled(r *Redis) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		for range time.Tick(time.Millisecond) {
			r.bus.mu.Lock()
			round := r.bus.round
			r.bus.mu.Unlock()
			if round > 0 { // a heartbeat has passed: the listener has long been greeting
				return
			}
		}
	}()
	return c
}

// Spaces come and go while events flow and connections are cut; nothing is told to a space that was closed.
func TestJoinAndLeaveUnderTraffic(t *testing.T) {
	s := redistest.Start(t)
	rdb, prefix := s.Client(t), redistest.Name(t)
	a, _ := busOn(t, rdb, prefix)
	b, _ := busOn(t, s.Client(t), prefix)
	from, _ := openHearing(t, a, "users")
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				_ = rdb.Publish(t.Context(), from.channel, a.bus.event(from, eventInvalidated, "k")).Err()
				if n%200 == 199 {
					_ = rdb.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err()
				}
			}
		}
	})
	for range 20 {
		l := newListener()
		sp, err := b.Open(SpaceOptions{Name: "users", Events: l.events()})
		require.NoError(t, err)
		await(t, sp.Heard())
		sp.Close()
		told := len(l.told)
		_, stopListening := sp.Listen("k")
		stopListening()
		require.Len(t, l.told, told, "told after it was closed")
	}
	close(stop)
	all.Wait()
}

// quietBus returns a bus on which nothing happens by itself, with an open ear and a connection that stands.
func quietBus(t *testing.T, told *[]string) (b *bus, e *ear, cut *bool) {
	t.Helper()
	r, _ := busOn(t, redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}), "tc")
	t.Cleanup(func() { _ = r.rdb.Close() })
	b, cut = r.bus, new(bool)
	sp := &Space{r: r, channel: "tc:users:bus", o: SpaceOptions{Name: "users", Events: Events{
		Invalidated: func(id string) { *told = append(*told, "invalidated "+id) },
		Deaf:        func() { *told = append(*told, "deaf") },
		Hear:        func() { *told = append(*told, "hear") },
	}}}
	e = &ear{bus: b, space: sp, channel: sp.channel, events: sp.o.Events, heard: make(chan struct{})}
	sp.ear = e
	b.ears[e.channel] = e
	l := &link{cut: func() { *cut = true }, channels: make(map[string]*ask)}
	b.link = l
	for _, c := range []string{b.private, e.channel} {
		l.expect(c, time.Time{})
		require.NoError(t, b.confirm(l, &redis.Subscription{Kind: "subscribe", Channel: c}))
	}
	return b, e, cut
}

// roundForTest is a heartbeat in which the masters given take theirs; it returns those probes.
func (b *bus) roundForTest(masters ...string) map[string]string {
	b.round++
	sent := make(map[string]string)
	trust := b.trust
	for _, m := range masters {
		n := b.sending(m, b.round, true)
		b.sent(m, n, true, nil)
		sent[m] = event{number: n}.String()[1:] + m
	}
	b.conclude(b.round, trust, true)
	return sent
}

// Trust waits for the probes of all masters that took one, and only for those that were sent after the subscription was confirmed.
func TestTrustWaitsForEveryProbe(t *testing.T) {
	var told []string
	b, _, _ := quietBus(t, &told)
	first := b.roundForTest("a", "b", "c")
	b.returned(first["a"])
	b.returned(first["b"])
	require.Empty(t, told)
	second := b.roundForTest("a", "b", "c")
	b.returned(first["c"])
	b.returned(second["a"])
	b.returned(second["c"])
	require.Empty(t, told, "an older probe counted")
	b.returned(second["b"])
	require.Equal(t, []string{"hear"}, told)
}

// A round of probes that began before the subscription was confirmed, or before the last loss, proves nothing when it comes back.
func TestOlderRoundProvesNothing(t *testing.T) {
	var told []string
	b, _, _ := quietBus(t, &told)
	for name, conclude := range map[string]func(round, trust uint64){
		"unconfirmed": func(round, trust uint64) { b.conclude(round, trust, false) },
		"older":       func(round, trust uint64) { b.conclude(round, trust-1, true) },
	} {
		b.round++
		n := b.sending("a", b.round, true)
		b.sent("a", n, true, nil)
		conclude(b.round, b.trust)
		b.returned(event{number: n}.String()[1:] + "a")
		require.Empty(t, told, name)
	}
}

// A lost connection is told before anything else is done about it.
func TestLossIsToldAtOnce(t *testing.T) {
	var told []string
	b, _, _ := quietBus(t, &told)
	b.returned(b.roundForTest("a")["a"])
	b.lost(t.Context(), io.EOF)
	require.Equal(t, []string{"hear", "deaf"}, told)
}

// What was on its way to a space when it was closed is not told to it any more.
func TestClosedSpaceIsToldNothing(t *testing.T) {
	var told []string
	b, e, _ := quietBus(t, &told)
	b.leave(e.space)
	e.take(event{kind: eventInvalidated, origin: newOrigin(), number: 1, payload: "k"}.String(), time.Now())
	e.take("nonsense", time.Now())
	b.returned(b.roundForTest("a")["a"])
	e.tune()
	e.do(func() { told = append(told, "tick") })
	require.Empty(t, told)
	require.Empty(t, b.ears)
}

// Two probes of one master that stay away in a row make the bus deaf, though those of the others come back; one does not.
func TestTwoMissedProbesOfOneMasterAreDeaf(t *testing.T) {
	var told []string
	b, _, cut := quietBus(t, &told)
	all := func(sent map[string]string, but string) {
		for m, p := range sent {
			if m != but {
				b.returned(p)
			}
		}
	}
	all(b.roundForTest("a", "b"), "")
	require.Equal(t, []string{"hear"}, told)
	all(b.roundForTest("a", "b"), "b") // misses one
	all(b.roundForTest("a", "b"), "")  // comes back: no longer in a row
	all(b.roundForTest("a", "b"), "b")
	all(b.roundForTest("a", "b"), "b")
	require.Equal(t, []string{"hear"}, told)
	require.False(t, *cut)
	all(b.roundForTest("a", "b"), "b")
	require.Equal(t, []string{"hear", "deaf"}, told)
	require.True(t, *cut, "another connection must be tried")
}

// A loss that is over before an ear is looked at is told to it nevertheless.
func TestLossThatIsOverIsStillTold(t *testing.T) {
	var told []string
	b, e, _ := quietBus(t, &told)
	b.returned(b.roundForTest("a")["a"])
	b.mu.Lock()
	b.doubtLocked()
	b.sound = true
	b.mu.Unlock()
	e.tune()
	require.Equal(t, []string{"hear", "deaf", "hear"}, told)
}

// A gap is told a second after it was seen, not before, and numbers that only come in another order are none.
func TestGapIsToldAfterASecondUnlessItIsFilled(t *testing.T) {
	var told []string
	b, e, _ := quietBus(t, &told)
	b.returned(b.roundForTest("a")["a"])
	told = nil
	start, origin := time.Unix(1_000, 0), newOrigin()
	hear := func(n uint64, at time.Time) {
		e.take(event{kind: eventInvalidated, origin: origin, number: n, payload: "k"}.String(), at)
	}
	hear(1, start)
	hear(3, start)
	hear(2, start.Add(time.Second-1))
	require.True(t, e.overdue(start.Add(time.Minute/2)).IsZero())
	require.Equal(t, []string{"invalidated k", "invalidated k", "invalidated k"}, told)
	require.Zero(t, e.gaps.Load())

	told = nil
	start = start.Add(time.Minute)
	hear(4, start)
	hear(6, start)
	require.Equal(t, start.Add(time.Second), e.overdue(start.Add(time.Second-1)))
	require.NotContains(t, told, "deaf")
	require.True(t, e.overdue(start.Add(time.Second)).IsZero())
	require.Equal(t, []string{"invalidated k", "invalidated k", "deaf", "hear"}, told)
	require.Equal(t, uint64(1), e.gaps.Load())
}
