package redistest

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// plain is a client's options without repeats: what one command meets is what the test sees.
func plain(o *redis.Options) { o.MaxRetries = -1 }

// KillClients closes connections from the server's side, of the types it is told.
//
// Broken by: KillClients without "TYPE", t in its filter.
func TestKillClients(t *testing.T) {
	s := Start(t)
	c := s.Client(t, plain)
	ps := c.Subscribe(t.Context(), "channel")
	t.Cleanup(func() { _ = ps.Close() })
	_, err := ps.Receive(t.Context()) // the subscription
	require.NoError(t, err)
	one := c.Conn()
	t.Cleanup(func() { _ = one.Close() })
	require.NoError(t, one.Ping(t.Context()).Err())

	require.Equal(t, 1, s.KillClients("pubsub"), "subscribers")
	_, err = ps.ReceiveTimeout(t.Context(), startTime)
	require.Error(t, err, "the subscription's connection")
	require.NoError(t, one.Ping(t.Context()).Err(), "another connection lives")
	require.Positive(t, s.KillClients("normal"))
	require.Error(t, one.Ping(t.Context()).Err(), "after normal clients were killed")
}

// FlushAll takes all keys, ScriptFlush all scripts and no key.
//
// Broken by: FlushAll calling ScriptFlush.
func TestFlushes(t *testing.T) {
	s := Start(t)
	c := s.Client(t)
	sha, err := c.ScriptLoad(t.Context(), "return 1").Result()
	require.NoError(t, err)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	s.ScriptFlush()
	require.ErrorContains(t, c.EvalSha(t.Context(), sha, nil).Err(), "NOSCRIPT")
	require.Equal(t, "v", c.Get(t.Context(), "k").Val(), "a key after ScriptFlush")
	s.FlushAll()
	require.Zero(t, c.DBSize(t.Context()).Val(), "keys after FlushAll")
}

// A server comes back with what it had when it was saved; without a dump, with nothing, though it has saved before.
//
// Broken by: Server.restart without its os.Remove.
func TestRestartWithADump(t *testing.T) {
	s := Start(t)
	require.NoError(t, s.Client(t).Set(t.Context(), "k", "old", 0).Err())
	dump := s.Save()
	require.NoError(t, s.Client(t).Set(t.Context(), "k", "new", 0).Err())
	s.RestartWith(dump)
	require.Equal(t, "old", s.Client(t).Get(t.Context(), "k").Val(), "after a restart with the dump")
	s.Restart()
	require.ErrorIs(t, s.Client(t).Get(t.Context(), "k").Err(), redis.Nil, "after a restart without one")
}

// A read-only server answers what it has and refuses writes; it takes them again as nobody's replica.
//
// Broken by: ReadOnly without its call of follow.
func TestReadOnly(t *testing.T) {
	s := Start(t)
	c := s.Client(t, plain)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	s.ReadOnly()
	require.ErrorContains(t, c.Set(t.Context(), "k", "w", 0).Err(), "READONLY")
	require.Equal(t, "v", c.Get(t.Context(), "k").Val(), "reads go on")
	s.ReplicaOfNobody()
	require.NoError(t, c.Set(t.Context(), "k", "w", 0).Err())
}

// A replica has all that its master had when StartReplica or AwaitSync was called, refuses writes, and goes on alone as nobody's.
//
// Broken by: ReplicaOf without its AwaitSync.
func TestReplica(t *testing.T) {
	master := Start(t)
	m := master.Client(t)
	require.NoError(t, m.Set(t.Context(), "before", "v", 0).Err())
	replica := StartReplica(t, master)
	r := replica.Client(t, plain)
	require.Equal(t, "v", r.Get(t.Context(), "before").Val(), "what was there before")
	for range 100 { // a replica that is not waited for is behind now and then
		_, err := m.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for range 100 {
				p.Incr(t.Context(), "n")
			}
			return nil
		})
		require.NoError(t, err)
		replica.AwaitSync(master)
		require.Equal(t, m.Get(t.Context(), "n").Val(), r.Get(t.Context(), "n").Val(), "after AwaitSync")
	}
	require.ErrorContains(t, r.Set(t.Context(), "k", "v", 0).Err(), "READONLY")
	replica.ReplicaOfNobody()
	require.NoError(t, r.Set(t.Context(), "k", "v", time.Minute).Err())
	require.NoError(t, m.Set(t.Context(), "k", "w", time.Minute).Err())
	require.Equal(t, "v", r.Get(t.Context(), "k").Val(), "what the old master was told since")
}
