package redistest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Waits of this package. They end a test that can no longer succeed; no test passes or fails by coming near them.
const (
	startTime = 30 * time.Second      // one server's start; chosen, not tuned
	pollEvery = 10 * time.Millisecond // between two looks at a server that is starting; chosen, not tuned
	portTries = 20                    // ports that another process took between our look and the server's bind
)

// errEnded says that a server process ended by itself, which it does at once when its port is taken.
var errEnded = errors.New("redistest: redis-server ended")

// process is one redis-server: its place on the disk and on the network, which outlive a restart, and what runs there.
type process struct {
	binary string
	port   int
	dir    string
	args   []string
	conf   []string // a sentinel's first configuration, line by line, which it then keeps by itself; nil: no sentinel

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has been waited for
	paused bool
}

// launch starts a redis-server on a free port with its files in dir. Extra arguments come last and win.
// With bus set, the port of the cluster bus (port + 10000) is free too.
func launch(dir string, bus bool, extra ...string) (*process, error) {
	p := &process{dir: dir, args: extra}
	return p, p.launch(bus)
}

func (p *process) launch(bus bool) (err error) {
	if p.binary, err = exec.LookPath("redis-server"); err != nil {
		return err
	}
	for try := 0; ; try++ {
		if p.port, err = freePort(bus); err != nil {
			return err
		}
		if err = p.start(); err == nil || !errors.Is(err, errEnded) || try == portTries {
			return err
		}
	}
}

// dump is where the server keeps what it is told to save, and from where it takes what it starts with.
func (p *process) dump() string { return filepath.Join(p.dir, "dump.rdb") }

func (p *process) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// start runs the server on its port and returns when it answers, with errEnded if it ended instead.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	args, err := p.commandLine()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "redis.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the server has its own handle of the file
	// The process outlives the context of the test that happened to start it; kill ends it.
	cmd := exec.CommandContext(context.Background(), p.binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, attributes()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // a killed server has nothing to say
	}()
	p.cmd, p.ended, p.paused = cmd, ended, false
	return p.awaitReady()
}

// commandLine is what the server is started with.
func (p *process) commandLine() ([]string, error) {
	args := []string{"--port", strconv.Itoa(p.port), "--bind", "127.0.0.1", "--daemonize", "no", "--dir", p.dir, "--loglevel", "notice"}
	if p.conf != nil {
		file := filepath.Join(p.dir, "sentinel.conf")
		// Only the first time: by then it holds what the sentinel has learned.
		if _, err := os.Stat(file); err != nil {
			if err := os.WriteFile(file, []byte(strings.Join(p.conf, "\n")+"\n"), 0o600); err != nil {
				return nil, err
			}
		}
		return append(append([]string{file, "--sentinel"}, args...), p.args...), nil
	}
	args = append(args, "--save", "", "--appendonly", "no")
	if version(p.binary) >= 7 {
		args = append(args, "--enable-debug-command", "local")
	}
	return append(args, p.args...), nil
}

// awaitReady polls the server until it answers. It asks for the process id: on a port that was taken in the meantime somebody
// else's server would answer a PING just as well.
func (p *process) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	want := fmt.Sprintf("process_id:%d\r\n", p.cmd.Process.Pid)
	for {
		if info, err := ask(ctx, p.addr()); err == nil && strings.Contains(info, want) {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%w: %s", errEnded, p.lastWords())
		case <-ctx.Done():
			p.killLocked()
			return fmt.Errorf("redistest: redis-server on %s did not answer within %v: %s", p.addr(), startTime, p.lastWords())
		case <-tick.C:
		}
	}
}

// ask sends PING and then INFO to the server at addr over a connection of its own and returns the answer of INFO.
func ask(ctx context.Context, addr string) (string, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // nothing was left to send
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "PING\r\nINFO server\r\n"); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	pong, err := r.ReadString('\n')
	if err != nil || pong != "+PONG\r\n" {
		return "", fmt.Errorf("redistest: PING answered with %q: %w", pong, errors.Join(err))
	}
	head, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(head, "$"), "\r\n"))
	if err != nil {
		return "", err
	}
	info := make([]byte, n)
	_, err = io.ReadFull(r, info)
	return string(info), err
}

// kill ends the server at once, as a crash would, and waits until it is gone. A server that is gone already is left alone.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killLocked()
}

func (p *process) killLocked() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill() // fails only if the process has ended
	<-p.ended
	p.cmd = nil
}

// runs reports whether the server was started and not killed.
func (p *process) runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil
}

// signal pauses or resumes the server.
func (p *process) signal(stop bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("redistest: the server is not running")
	}
	p.paused = stop
	if stop {
		return pause(p.cmd.Process)
	}
	return resume(p.cmd.Process)
}

// lastWords is the end of the server's log.
func (p *process) lastWords() string {
	log, err := os.ReadFile(filepath.Join(p.dir, "redis.log"))
	if err != nil {
		return err.Error()
	}
	const most = 2000
	return string(bytes.TrimSpace(log[max(0, len(log)-most):]))
}

// freePort returns a port of the loopback interface on which nobody listens at the moment.
func freePort(bus bool) (int, error) {
	var lc net.ListenConfig
	for range 100 * portTries {
		l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return 0, err
		}
		if !bus {
			return port, nil
		}
		if port+10000 > 65535 {
			continue
		}
		b, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+10000)))
		if err != nil {
			continue
		}
		if err := b.Close(); err != nil {
			return 0, err
		}
		return port, nil
	}
	return 0, errors.New("redistest: no free pair of ports")
}

var versions sync.Map // path of a redis-server -> its major version

// version is the major version of the redis-server at path, 0 where it cannot be told.
func version(path string) int {
	if v, ok := versions.Load(path); ok {
		return v.(int)
	}
	out, err := exec.CommandContext(context.Background(), path, "--version").Output()
	major := 0
	if err == nil {
		if _, rest, ok := strings.Cut(string(out), "v="); ok {
			digits, _, _ := strings.Cut(rest, ".")
			major, _ = strconv.Atoi(digits) // not a number: 0, as documented
		}
	}
	versions.Store(path, major)
	return major
}
