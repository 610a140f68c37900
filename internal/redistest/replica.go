package redistest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// deadPort is a port on which nobody listens, since only root could: where a replica without a master looks for one.
const deadPort = "1"

// StartReplica returns a server of the test's own that is a replica of master, with all master has; it is killed when the test ends.
// Without the binary the test is skipped.
func StartReplica(tb testing.TB, master *Server, o ...Option) *Server {
	tb.Helper()
	s := start(tb, false, o...)
	s.ReplicaOf(master)
	return s
}

// ReplicaOf makes s a replica of master and returns when s has all that master had by then. What s had is lost.
func (s *Server) ReplicaOf(master *Server) {
	s.tb.Helper()
	s.own("ReplicaOf")
	master.own("ReplicaOf")
	// By default the first copy waits for company.
	master.do(func(ctx context.Context, r *redis.Client) error {
		return r.ConfigSet(ctx, "repl-diskless-sync-delay", "0").Err()
	})
	s.follow(master.Addr)
	s.AwaitSync(master)
}

// ReplicaOfNobody makes s a master with what it has (REPLICAOF NO ONE). The master that it was a replica of goes on as one.
func (s *Server) ReplicaOfNobody() {
	s.tb.Helper()
	s.own("ReplicaOfNobody")
	s.do(func(ctx context.Context, r *redis.Client) error { return r.ReplicaOf(ctx, "NO", "ONE").Err() })
}

// ReadOnly makes s the replica of a master that does not exist: it keeps and answers what it has, and every write is told READONLY, until
// ReplicaOfNobody.
func (s *Server) ReadOnly() {
	s.tb.Helper()
	s.own("ReadOnly")
	s.follow("127.0.0.1:" + deadPort)
}

func (s *Server) follow(addr string) {
	s.tb.Helper()
	host, port, _ := strings.Cut(addr, ":")
	s.do(func(ctx context.Context, r *redis.Client) error { return r.ReplicaOf(ctx, host, port).Err() })
}

// AwaitSync returns when s, a replica of master, has all that master had when AwaitSync was called.
func (s *Server) AwaitSync(master *Server) {
	s.tb.Helper()
	await(s.tb, func(ctx context.Context) error {
		state, err := replication(ctx, s.Addr)
		if err == nil && state["master_link_status"] != "up" {
			err = fmt.Errorf("redistest: the replica's link to its master is %q", state["master_link_status"])
		}
		return err
	})
	want := int64(-1)
	await(s.tb, func(ctx context.Context) error {
		if want < 0 {
			state, err := replication(ctx, master.Addr)
			if err != nil {
				return err
			}
			if want, err = strconv.ParseInt(state["master_repl_offset"], 10, 64); err != nil {
				return err
			}
		}
		state, err := replication(ctx, s.Addr)
		if err != nil {
			return err
		}
		if have, err := strconv.ParseInt(state["slave_repl_offset"], 10, 64); err != nil || have < want {
			return errors.Join(err, fmt.Errorf("redistest: the replica is at %d, its master was at %d", have, want))
		}
		return nil
	})
}

// leads reports whether s runs and says that it is a master.
func (s *Server) leads() bool {
	state, err := replication(s.tb.Context(), s.Addr)
	return err == nil && state["role"] == "master"
}

// follows reports whether s runs and says that it is a replica of master.
func (s *Server) follows(master *Server) bool {
	state, err := replication(s.tb.Context(), s.Addr)
	return err == nil && state["role"] == "slave" && state["master_host"]+":"+state["master_port"] == master.Addr
}

// replication is what the server at addr says of its replication, by the names of INFO.
func replication(ctx context.Context, addr string) (state map[string]string, err error) {
	state = map[string]string{}
	err = at(addr, func(r *redis.Client) error {
		info, err := r.Info(ctx, "replication").Result()
		for line := range strings.Lines(info) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				state[name] = value
			}
		}
		return err
	})
	return state, err
}

// do calls f with a client of s and ends the test at an error.
func (s *Server) do(f func(ctx context.Context, r *redis.Client) error) {
	s.tb.Helper()
	if err := at(s.Addr, func(r *redis.Client) error { return f(s.tb.Context(), r) }); err != nil {
		s.tb.Fatalf("redistest: %s: %v", s.Addr, err)
	}
}
