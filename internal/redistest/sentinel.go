package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
)

const (
	sentinels    = 3
	sentinelName = "tc" // of the watched master
	// A master that answers nothing for this long (ms) is taken for dead; chosen: short, and above what a loaded machine may stall; not tuned.
	downAfter = 2000
	// After twice this time (ms) a failover that came to nothing is tried again; chosen; not tuned.
	failoverTimeout = 5000
)

// Sentinel is one master with replicas and the three sentinels that watch it and put a replica in its place when it dies.
type Sentinel struct {
	Servers   []*Server // the master of the beginning first; who leads changes with each failover
	Sentinels []*Server

	tb testing.TB
}

// StartSentinel returns a master with so many replicas (at least one) and three sentinels of the test's own; they are killed when the
// test ends. It returns when the replicas have the master's data and each sentinel knows all of them. The options are those of the servers. Without
// the binary the test is skipped.
func StartSentinel(tb testing.TB, replicas int, o ...Option) *Sentinel {
	tb.Helper()
	master := Start(tb, o...)
	s := &Sentinel{tb: tb, Servers: []*Server{master}}
	for range max(replicas, 1) {
		s.Servers = append(s.Servers, StartReplica(tb, master, o...))
	}
	host, port, err := net.SplitHostPort(master.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	for range sentinels {
		p := &process{dir: tb.TempDir(), conf: []string{
			fmt.Sprintf("sentinel monitor %s %s %s %d", sentinelName, host, port, sentinels/2+1),
			fmt.Sprintf("sentinel down-after-milliseconds %s %d", sentinelName, downAfter),
			fmt.Sprintf("sentinel failover-timeout %s %d", sentinelName, failoverTimeout),
		}}
		if err := p.launch(false); err != nil {
			tb.Fatalf("redistest: start a sentinel: %v", err)
		}
		tb.Cleanup(p.kill)
		s.Sentinels = append(s.Sentinels, &Server{Addr: p.addr(), tb: tb, proc: p})
	}
	s.awaitAgreement(func(addr string) error {
		if addr != master.Addr {
			return fmt.Errorf("redistest: a sentinel has %s for the master, want %s", addr, master.Addr)
		}
		return nil
	})
	return s
}

// FailoverClient returns a client that asks the sentinels for the master, with the options of go-redis after each set was applied to
// them; it is closed when the test ends.
func (s *Sentinel) FailoverClient(tb testing.TB, set ...func(*redis.FailoverOptions)) *redis.Client {
	tb.Helper()
	o := &redis.FailoverOptions{MasterName: sentinelName}
	for _, n := range s.Sentinels {
		o.SentinelAddrs = append(o.SentinelAddrs, n.Addr)
	}
	for _, f := range set {
		f(o)
	}
	c := redis.NewFailoverClient(o)
	tb.Cleanup(func() { _ = c.Close() }) // an error says that the test has closed it already
	return c
}

// Master is the server that most sentinels have for the master, be it dead.
func (s *Sentinel) Master() *Server {
	s.tb.Helper()
	votes := map[string]int{}
	for _, n := range s.Sentinels {
		if m, err := watched(s.tb.Context(), n.Addr); err == nil {
			votes[m.addr()]++
		}
	}
	for _, server := range s.Servers {
		if votes[server.Addr] > sentinels/2 {
			return server
		}
	}
	s.tb.Fatalf("redistest: the sentinels do not agree about the master: %v", votes)
	return nil
}

// KillMaster kills the master, as a crash does, and returns it; AwaitFailover says when another has taken its place.
func (s *Sentinel) KillMaster() (dead *Server) {
	s.tb.Helper()
	dead = s.Master()
	dead.Kill()
	return dead
}

// Failover has a replica take the master's place, without a vote (SENTINEL FAILOVER): the master lives on, and becomes a replica
// a little later; what it took in between is lost. It returns the new master as AwaitFailover does.
func (s *Sentinel) Failover() (to *Server) {
	s.tb.Helper()
	from := s.Master()
	// A sentinel that has just seen a failover refuses another, and so does one that has no good replica at this moment.
	await(s.tb, func(ctx context.Context) error {
		return at(s.Sentinels[0].Addr, func(r *redis.Client) error {
			return r.Do(ctx, "SENTINEL", "FAILOVER", sentinelName).Err()
		})
	})
	return s.AwaitFailover(from)
}

// AwaitFailover returns the new master when every running sentinel has another master than from, all the same, and that one takes
// writes.
func (s *Sentinel) AwaitFailover(from *Server) (to *Server) {
	s.tb.Helper()
	s.awaitAgreement(func(addr string) error {
		if addr == from.Addr {
			return fmt.Errorf("redistest: a sentinel still has %s for the master", addr)
		}
		return nil
	})
	to = s.Master()
	await(s.tb, func(ctx context.Context) error {
		return at(to.Addr, func(r *redis.Client) error { return r.Set(ctx, "redistest:probe", "1", clusterTime).Err() })
	})
	return to
}

// awaitAgreement waits until every running sentinel knows the other sentinels and all servers, and all have the same master, about
// which ok has no error.
func (s *Sentinel) awaitAgreement(ok func(master string) error) {
	s.tb.Helper()
	await(s.tb, func(ctx context.Context) error {
		var masters []string
		for _, n := range s.Sentinels {
			if !n.proc.runs() {
				continue
			}
			m, err := watched(ctx, n.Addr)
			if err != nil {
				return err
			}
			if err := ok(m.addr()); err != nil {
				return err
			}
			if m["num-other-sentinels"] != strconv.Itoa(sentinels-1) || m["num-slaves"] != strconv.Itoa(len(s.Servers)-1) {
				return fmt.Errorf("redistest: a sentinel knows %s sentinels and %s replicas", m["num-other-sentinels"], m["num-slaves"])
			}
			masters = append(masters, m.addr())
		}
		slices.Sort(masters)
		if len(slices.Compact(masters)) != 1 {
			return errors.New("redistest: the sentinels do not agree")
		}
		return nil
	})
}

// master is what a sentinel says of the master it watches.
type master map[string]string

func (m master) addr() string { return net.JoinHostPort(m["ip"], m["port"]) }

func watched(ctx context.Context, sentinel string) (m master, err error) {
	c := redis.NewSentinelClient(&redis.Options{Addr: sentinel, MaxRetries: -1})
	defer c.Close() //nolint:errcheck // nothing is under way any more
	m, err = c.Master(ctx, sentinelName).Result()
	return m, err
}
