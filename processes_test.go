package tiercache_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// cacheWorker makes this test binary a process of a fleet: the address of its Redis and the name of its cache, with a comma between.
const cacheWorker = "TIERCACHE_TEST_CACHE_WORKER"

// workerLease is the LeaseTime of these processes.
const workerLease = time.Second

// workerOptions are those of a cache of a fleet that has such processes.
func workerOptions(name string, load func(context.Context, string) (string, error)) tiercache.Options[string, string] {
	return tiercache.Options[string, string]{Name: name, Load: load, LeaseTime: workerLease, LoadTimeout: 2 * time.Minute, Jitter: -1}
}

// runCacheWorker is the life of one process. It reads lines: "get <key>" begins a Get, whose answer it prints as "got <value>"; "row <value>"
// lets a load that waits return this. When a load begins it prints "loading".
func runCacheWorker(spec string) error {
	addr, name, _ := strings.Cut(spec, ",")
	shared, err := layers.NewRedis(context.Background(), redis.NewClient(&redis.Options{Addr: addr}), layers.RedisOptions{})
	if err != nil {
		return err
	}
	rows := make(chan string)
	o := workerOptions(name, func(ctx context.Context, _ string) (string, error) {
		fmt.Println("loading")
		select {
		case row := <-rows:
			return row, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	o.Shared = shared
	cache, err := tiercache.New(o)
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, what, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "get":
			go func() {
				if v, err := cache.Get(context.Background(), what); err != nil {
					fmt.Println("failed", err)
				} else {
					fmt.Println("got", v)
				}
			}()
		case "row":
			rows <- what
		}
	}
	return nil
}

// worker is a process of a fleet, as its test sees it.
type worker struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.Writer
	said chan string // closed when the process has ended
}

func startWorker(t *testing.T, addr, name string) *worker {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	w := &worker{t: t, cmd: exec.Command(self), said: make(chan string, 16)} //nolint:noctx // killed at the latest when the test ends
	w.cmd.Env = append(os.Environ(), cacheWorker+"="+addr+","+name)
	w.cmd.Stderr = os.Stderr
	w.in, err = w.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := w.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, w.cmd.Start())
	t.Cleanup(w.kill)
	go func() {
		defer close(w.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.said <- lines.Text()
		}
	}()
	return w
}

func (w *worker) kill() {
	_ = w.cmd.Process.Kill() // it may be gone
	_ = w.cmd.Wait()
}

func (w *worker) do(line string) {
	w.t.Helper()
	_, err := fmt.Fprintln(w.in, line)
	require.NoError(w.t, err)
}

func (w *worker) says(want string) {
	w.t.Helper()
	require.Equal(w.t, want, await(w.t, w.said, "the process says "+want))
}

// Property (P1): of a process that is killed in the middle of a load nothing is left that outlives the lease: another process loads within the
// lease time plus a second, and no key in Redis is without an expiry. Broken by: loadLeased without LeaseTime in Ask (ten times as long).
func TestKilledProcessIsReplacedWithinTheLease(t *testing.T) {
	t.Parallel()
	server, name := redistest.Start(t), redistest.Name(t)
	s := newSource(map[string]string{"k": "row"})
	here := openBrief(t, server.Client(t), layers.RedisOptions{}, workerOptions(name, s.load))
	w := startWorker(t, server.Addr, name)
	w.do("get k")
	w.says("loading")
	requireAllExpire(t, server.Client(t), name)
	rdb := server.Client(t)
	left := leaseEnd(t, rdb, valueKey(name, "k")) - redisTime(t, rdb, valueKey(name, "k"))
	require.LessOrEqual(t, left, workerLease.Milliseconds(), "what a dead process can hold")
	w.kill()
	read := (&peer{process: here}).get(t.Context(), "k")
	require.Equal(t, result{value: "row"}, await(t, read, "another process's Get"))
	require.EqualValues(t, 1, s.loads.Load())
	requireAllExpire(t, server.Client(t), name)
}

// Property (P2): 1 a process is stopped in the middle of a load for longer than its lease; 2 the row changes, is invalidated, and is loaded by
// another; 3 the process goes on and brings the old row back: refused by Redis, and not kept in its own memory.
// Broken by: fill.lua without the comparison of token and stamp; filled keeping what was refused.
func TestProcessStoppedBeyondItsLeaseBringsNothingBack(t *testing.T) {
	t.Parallel()
	server, name := redistest.Start(t), redistest.Name(t)
	s := newSource(map[string]string{"k": "new"})
	here := openBrief(t, server.Client(t), layers.RedisOptions{}, workerOptions(name, s.load))
	w := startWorker(t, server.Addr, name)
	w.do("get k")
	w.says("loading")
	require.NoError(t, redistest.Pause(w.cmd.Process))
	rdb, at := server.Client(t), valueKey(name, "k")
	end := leaseEnd(t, rdb, at)
	eventually(t, func() bool { return redisTime(t, rdb, at) > end }, "its lease ends")
	wantValue(t, here.Cache, "k", "new")
	w.do("row old") // it has read the row before it was stopped
	require.NoError(t, redistest.Resume(w.cmd.Process))
	w.says("got old") // to its caller, who asked before the row changed
	w.do("get k")
	w.says("got new")
	wantValue(t, here.Cache, "k", "new")
	require.EqualValues(t, 1, s.loads.Load())
}
