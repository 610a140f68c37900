package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// server is a redis-server process of this run's own, on loopback, without persistence.
type server struct {
	addr string
	cmd  *exec.Cmd
	dir  string
}

// startServer returns a server that answers. It is an error that says what to do if there is no redis-server in PATH.
func startServer(ctx context.Context) (*server, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("no redis-server in PATH: install it (Debian, Ubuntu: apt-get install redis-server) to run this scenario")
	}
	// Between finding a free port and the server's bind another process may take it: then the next port is tried.
	for attempt := 0; ; attempt++ {
		s, err := launch(ctx, binary)
		if err == nil || attempt == 3 || ctx.Err() != nil {
			return s, err
		}
	}
}

func launch(ctx context.Context, binary string) (*server, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tiercache-bench-")
	if err != nil {
		return nil, err
	}
	// The process must outlive ctx: scenarios that ctx ended still close their caches.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir, "--loglevel", "warning")
	s := &server{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), cmd: cmd, dir: dir}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	rdb := redis.NewClient(&redis.Options{Addr: s.addr, MaxRetries: -1, DialerRetries: 1})
	defer rdb.Close() //nolint:errcheck // nothing was written
	for end := time.Now().Add(5 * time.Second); ; {
		err := ping(ctx, rdb, cmd.Process.Pid)
		if err == nil {
			return s, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			s.stop()
			return nil, fmt.Errorf("redis-server did not come up: %w", err)
		}
	}
}

// ping asks until the server of this process id answers; another server on the port would be somebody else's.
func ping(ctx context.Context, rdb *redis.Client, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	// A port that nobody listens on yet refuses at once: dialling it by hand keeps the client from logging that.
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", rdb.Options().Addr)
	if err != nil {
		<-ctx.Done()
		return err
	}
	c.Close() //nolint:errcheck // only to see that somebody listens
	info, err := rdb.Info(ctx, "server").Result()
	if err != nil {
		return err
	}
	if field(info, "process_id") != strconv.Itoa(pid) {
		return errors.New("the port was taken by another server")
	}
	return nil
}

func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (s *server) version(ctx context.Context) string {
	rdb := redis.NewClient(&redis.Options{Addr: s.addr})
	defer rdb.Close() //nolint:errcheck // nothing was written
	info, err := rdb.Info(ctx, "server").Result()
	if err != nil {
		return ""
	}
	return field(info, "redis_version") + ", own process on loopback, no persistence"
}

// stop ends the process and removes its folder.
func (s *server) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = os.RemoveAll(s.dir)
}

// field returns one line's value of an INFO reply.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
