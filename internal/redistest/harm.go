package redistest

import (
	"context"
	"os"

	"github.com/redis/go-redis/v9"
)

// KillClients closes connections to s from its side (CLIENT KILL TYPE): those of these types, "normal" or "pubsub"; of both, without
// any. It returns how many there were.
func (s *Server) KillClients(types ...string) (killed int) {
	s.tb.Helper()
	s.own("KillClients")
	if len(types) == 0 {
		types = []string{"normal", "pubsub"}
	}
	for _, t := range types {
		s.do(func(ctx context.Context, r *redis.Client) error {
			n, err := r.ClientKillByFilter(ctx, "TYPE", t, "SKIPME", "yes").Result()
			killed += int(n)
			return err
		})
	}
	return killed
}

// FlushAll empties s, as an accident does.
func (s *Server) FlushAll() {
	s.tb.Helper()
	s.own("FlushAll")
	s.do(func(ctx context.Context, r *redis.Client) error { return r.FlushAll(ctx).Err() })
}

// ScriptFlush makes s forget all scripts, as a restart or a failover does.
func (s *Server) ScriptFlush() {
	s.tb.Helper()
	s.own("ScriptFlush")
	s.do(func(ctx context.Context, r *redis.Client) error { return r.ScriptFlush(ctx).Err() })
}

// Save returns s's data as a dump, for RestartWith.
func (s *Server) Save() (dump []byte) {
	s.tb.Helper()
	s.own("Save")
	s.do(func(ctx context.Context, r *redis.Client) (err error) {
		if err = r.Save(ctx).Err(); err == nil {
			dump, err = os.ReadFile(s.proc.dump())
		}
		return err
	})
	return dump
}

// RestartWith is Restart with the data of a dump: of now, as after an orderly stop, or of earlier, as after a crash or a restored
// backup. What a server with --appendonly has written there comes before the dump.
func (s *Server) RestartWith(dump []byte) {
	s.tb.Helper()
	s.own("RestartWith")
	s.restart(dump)
}
