package faulty

import (
	"context"
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// A command, alone and in a pipeline, is carried out as often as its fault says, whatever the client would repeat by itself; its
// caller is told what the fault says.
//
// Broken by: hook.ProcessHook or hook.send running next(ctx, copied) twice in the copy; send without cmd.SetErr.
func TestCommandsAndPipelines(t *testing.T) {
	reset := func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
	late := func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
	for name, want := range map[string]struct {
		rule    Rule
		err     func(error) bool
		value   int64 // the answer
		applied int   // in the end
	}{
		"refused":            {Rule{Kind: Refused}, func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }, 0, 0},
		"reset":              {Rule{Kind: Reset}, reset, 0, 0},
		"reply":              {Rule{Kind: Reply, Texts: []string{Loading}}, redis.IsLoadingError, 0, 0},
		"timeout":            {Rule{Kind: Timeout}, late, 0, 0},
		"applied, reset":     {Rule{Kind: AppliedReset}, reset, 0, 1},
		"applied, timeout":   {Rule{Kind: AppliedTimeout}, late, 0, 1},
		"duplicated":         {Rule{Kind: Duplicated}, nil, 2, 2},
		"duplicated late":    {Rule{Kind: Duplicated, Delay: time.Hour}, nil, 1, 2},
		"delayed":            {Rule{Kind: Delayed, Delay: time.Millisecond}, nil, 1, 1},
		"delayed beyond ctx": {Rule{Kind: Delayed, Delay: time.Hour}, late, 0, 1},
		"reordered":          {Rule{Kind: Reordered, Delay: time.Hour}, late, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			rdb := redistest.Shared(t).Client(t)
			f := New(1)
			defer f.Close()
			f.Install(rdb)
			for _, pipeline := range []bool{false, true} {
				key := redistest.Name(t)
				want.rule.About = key
				f.Set(want.rule)
				// Long where the answer must come in time.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				if want.err != nil && want.err(context.DeadlineExceeded) {
					ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
				}
				defer cancel()
				cmd := redis.NewIntCmd(ctx, "incr", key)
				var err error
				if pipeline {
					p := rdb.Pipeline()
					_ = p.Process(ctx, cmd)
					_, err = p.Exec(ctx)
				} else {
					err = rdb.Process(ctx, cmd)
				}
				if want.err == nil {
					require.NoError(t, err)
				} else {
					require.True(t, want.err(err), "pipeline %v: error %v", pipeline, err)
					require.Equal(t, err, cmd.Err(), "pipeline %v: the command's own error", pipeline)
				}
				require.Equal(t, want.value, cmd.Val(), "pipeline %v: the answer", pipeline)
				f.Set()
				f.Flush()
				applied, err := rdb.Get(t.Context(), key).Int()
				if want.applied > 0 {
					require.NoError(t, err)
				}
				require.Equal(t, want.applied, applied, "pipeline %v: times it was carried out", pipeline)
			}
		})
	}
}

// An error reply befalls a command of a pipeline alone: the others are carried out. Transactions pass.
//
// Broken by: ProcessPipelineHook sending cmds instead of left; without its look at "multi".
func TestReplyBefallsOneCommandOfAPipeline(t *testing.T) {
	rdb := redistest.Shared(t).Client(t)
	name := redistest.Name(t)
	f := New(1, Rule{Kind: Reply, About: name + ":b"})
	defer f.Close()
	f.Install(rdb)
	fill := func(p redis.Pipeliner) error {
		p.Set(t.Context(), name+":a", "1", time.Minute)
		p.Set(t.Context(), name+":b", "1", time.Minute)
		return nil
	}
	cmds, err := rdb.Pipelined(t.Context(), fill)
	require.True(t, redis.IsReadOnlyError(err), "%v", err)
	require.NoError(t, cmds[0].Err())
	require.True(t, redis.IsReadOnlyError(cmds[1].Err()), "%v", cmds[1].Err())
	require.EqualValues(t, 1, rdb.Exists(t.Context(), name+":a").Val())
	_, err = rdb.TxPipelined(t.Context(), fill)
	require.NoError(t, err)
	f.Set()
	require.EqualValues(t, 1, rdb.Exists(t.Context(), name+":b").Val())
}

// A script is known by its hash, whether its hash or its text is sent; what a client sends by itself to open a connection passes.
//
// Broken by: namesOf without its case of "eval"; chooses without setUp.
func TestScriptsAndSetUp(t *testing.T) {
	const src = "return redis.call('incr', KEYS[1])"
	script := redis.NewScript(src)
	rdb := redistest.Shared(t).Client(t)
	f := New(1, Rule{Kind: Reset, Names: []string{script.Hash()}})
	defer f.Close()
	f.Install(rdb)
	keys := []string{redistest.Name(t)}
	require.ErrorIs(t, script.Eval(t.Context(), rdb, keys).Err(), ErrInjected)
	require.ErrorIs(t, script.EvalSha(t.Context(), rdb, keys).Err(), ErrInjected)
	require.NoError(t, rdb.Eval(t.Context(), src+" ", keys).Err(), "another script")
	f.Set(Rule{Kind: Reset})
	require.NoError(t, rdb.ClientID(t.Context()).Err(), "what sets up a connection, by a rule about everything")
	require.ErrorIs(t, rdb.Ping(t.Context()).Err(), ErrInjected)
	f.Set(Rule{Kind: Reset, Names: []string{"client"}})
	require.ErrorIs(t, rdb.ClientID(t.Context()).Err(), ErrInjected, "and by a rule with its name")
}

// In a cluster each node's part of a pipeline is struck by itself, and a rule may be about one node.
//
// Broken by: Install without the node's address.
func TestClusterNodesAreStruckOneByOne(t *testing.T) {
	c := redistest.SharedCluster(t)
	name, rdb := redistest.Name(t), c.Client(t)
	f := New(1, Rule{Kind: Reset, Nodes: []string{c.Nodes[1].Addr}})
	defer f.Close()
	f.Install(rdb)
	var cmds []*redis.StatusCmd
	_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i, node := range c.Nodes {
			cmds = append(cmds, p.Set(t.Context(), c.Key(name, node), strconv.Itoa(i), time.Minute))
		}
		return nil
	})
	require.ErrorIs(t, err, ErrInjected)
	for i, cmd := range cmds {
		require.Equal(t, i == 1, errors.Is(cmd.Err(), ErrInjected), "node %d: %v", i, cmd.Err())
	}
}

// All of it works in virtual time, against a server in the same bubble: nothing sleeps.
//
// Broken by: a real wait anywhere, which a bubble does not end.
func TestInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := miniredis.NewMiniRedis()
		defer server.Close()
		f := New(1, Rule{Kind: Delayed, Names: []string{"incr"}, Delay: time.Hour})
		defer f.Close()
		rdb := redis.NewClient(&redis.Options{Dialer: f.Dialer(func(context.Context, string, string) (net.Conn, error) { return server.Dial() })})
		defer func() { require.NoError(t, rdb.Close()) }()
		f.Install(rdb)
		begun := time.Now()
		require.EqualValues(t, 1, rdb.Incr(t.Context(), "k").Val())
		require.Equal(t, time.Hour, time.Since(begun))
	})
}
