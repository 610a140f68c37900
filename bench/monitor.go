package bench

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// monitor records what clients send to a server, as the server tells it (MONITOR): what no client library can be asked, because some
// send on connections of their own. What scripts do inside the server is left out.
type monitor struct {
	addr string
	conn net.Conn
	done chan struct{} // closed when nothing more is read

	mu    sync.Mutex
	lines []string
}

func startMonitor(ctx context.Context, addr string) (*monitor, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	m := &monitor{addr: addr, conn: conn, done: make(chan struct{})}
	replies := bufio.NewReader(conn)
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		m.conn.Close() //nolint:errcheck // the error is the write's
		return nil, err
	}
	if ok, err := replies.ReadString('\n'); err != nil || !strings.HasPrefix(ok, "+OK") {
		m.conn.Close() //nolint:errcheck // the error is the reply's
		return nil, fmt.Errorf("MONITOR: %q, %w", ok, err)
	}
	go m.read(replies)
	return m, nil
}

func (m *monitor) read(replies *bufio.Reader) {
	defer close(m.done)
	for {
		l, err := replies.ReadString('\n')
		if err != nil {
			return
		}
		if _, origin, ok := strings.Cut(l, "["); ok && !strings.Contains(origin[:strings.IndexByte(origin, ']')+1], " lua]") {
			m.mu.Lock()
			m.lines = append(m.lines, origin)
			m.mu.Unlock()
		}
	}
}

// sent returns the names of the commands that have text among their arguments.
func (m *monitor) sent(text string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, l := range m.lines {
		if strings.Contains(l, text) {
			_, command, _ := strings.Cut(l, `] "`)
			name, _, _ := strings.Cut(command, `"`)
			names = append(names, strings.ToLower(name))
		}
	}
	return names
}

// settle waits until all that was sent before it is recorded.
func (m *monitor) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rdb := redis.NewClient(&redis.Options{Addr: m.addr})
	defer rdb.Close() //nolint:errcheck // nothing was written
	mark := fmt.Sprintf("monitor-mark-%d", time.Now().UnixNano())
	if err := rdb.Echo(ctx, mark).Err(); err != nil {
		return err
	}
	for len(m.sent(mark)) == 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the monitor lost its connection: %w", context.Cause(ctx))
		}
	}
	return nil
}

func (m *monitor) stop() {
	m.conn.Close() //nolint:errcheck // reads only
	<-m.done
}
