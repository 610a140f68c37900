package faulty

import (
	"bytes"
	"context"
	"net"
	"sync"
)

// Dialer returns a dialer for redis.Options and redis.ClusterOptions whose connections f may strike; nil: of plain connections.
//
// Dial suffers Refused, Timeout and Delayed. Answer, the first bytes that come after something was written, suffers Reset and Timeout: the
// command has been carried out by then. Once a connection has subscribed, what arrives on it is taken apart into messages, and Message, which is
// about its channel and its text, suffers Reset, Dropped, Duplicated, and Reordered: it is held until the next message on this connection,
// of whatever channel, has passed, and Delay means nothing. A message that nothing follows stays held, and is lost with its
// connection. Confirmations of subscriptions and pushes of other kinds always pass.
func (f *Faults) Dialer(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var made net.Conn
		run := func(ctx context.Context) (err error) {
			made, err = dial(ctx, network, addr)
			return err
		}
		var err error
		x := f.strike(&call{names: []string{Dial}, node: addr, suffers: dialKinds, isAbout: func(string) bool { return false }})
		if x == nil {
			err = run(ctx)
		} else {
			// What would be made after the caller has left is of no use to anybody.
			err = f.carry(ctx, x, addr, run, func(context.Context) error { return nil })
		}
		if err != nil {
			return nil, err
		}
		return &conn{Conn: made, f: f, node: addr}, nil
	}
}

var (
	dialKinds    = []Kind{Refused, Timeout, Delayed}
	answerKinds  = []Kind{Reset, Timeout}
	messageKinds = []Kind{Reset, Dropped, Duplicated, Reordered}
)

// conn is a connection to Redis. One goroutine at a time reads it, as go-redis does.
type conn struct {
	net.Conn
	f    *Faults
	node string

	mu         sync.Mutex
	asked      []byte // was written and has not been answered
	subscribed bool

	// Of the reader.
	mute bool     // nothing arrives any more
	cut  bool     // it is broken, once out was given out; who uses it closes it
	in   []byte   // arrived, and not a whole value yet
	out  []byte   // to be given out
	held [][]byte // messages that the next one shall overtake
}

// maxAsked is how much of what was written is remembered; chosen: a few of the library's largest pipelines; not tuned.
const maxAsked = 1 << 20

// Write passes b on and remembers it.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if len(c.asked)+len(b) <= maxAsked {
		c.asked = append(c.asked, b...)
	}
	// The name of the command as it is written: a bulk string of its own.
	c.subscribed = c.subscribed || bytes.Contains(b, []byte("\r\nsubscribe\r\n"))
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// Read gives out what arrives and is not struck.
func (c *conn) Read(b []byte) (int, error) {
	for {
		if len(c.out) > 0 {
			n := copy(b, c.out)
			c.out = c.out[n:]
			return n, nil
		}
		if c.cut {
			return 0, reset(c.node)
		}
		n, err := c.Conn.Read(b)
		if n == 0 {
			return n, err
		}
		c.mu.Lock()
		asked, subscribed := c.asked, c.subscribed
		c.asked = nil
		c.mu.Unlock()
		if subscribed {
			c.in = append(c.in, b[:n]...)
			c.take()
			continue
		}
		c.answer(asked)
		if !c.mute && !c.cut {
			return n, err
		}
	}
}

// answer decides about the answer to what was asked, if anything was: else it is more of the same answer.
func (c *conn) answer(asked []byte) {
	if len(asked) == 0 {
		return
	}
	x := c.f.strike(&call{
		names: []string{Answer}, node: c.node, suffers: answerKinds,
		isAbout: func(part string) bool { return bytes.Contains(asked, []byte(part)) },
	})
	if x != nil {
		c.cut, c.mute = x.Kind == Reset, x.Kind == Timeout
	}
}

// take moves the whole values that have arrived to out, as far as they are not struck.
func (c *conn) take() {
	for !c.cut {
		n := valueLength(c.in)
		if n == 0 {
			return
		}
		value := bytes.Clone(c.in[:n])
		c.in = c.in[n:]
		if !isMessage(value) {
			c.out = append(c.out, value...)
			continue
		}
		x := c.f.strike(&call{
			names: []string{Message}, node: c.node, suffers: messageKinds,
			isAbout: func(part string) bool { return bytes.Contains(value, []byte(part)) },
		})
		if x == nil {
			c.pass(value)
			continue
		}
		switch x.Kind {
		case Reset:
			c.cut = true
		case Reordered:
			c.held = append(c.held, value)
		case Duplicated:
			c.pass(append(value, value...))
		default: // Dropped
		}
	}
}

// pass gives out a message and those that were held for it.
func (c *conn) pass(message []byte) {
	for _, value := range append([][]byte{message}, c.held...) {
		c.out = append(c.out, value...)
	}
	c.held = nil
}

// isMessage reports whether the value is what a subscriber gets when somebody publishes, in either version of the protocol.
func isMessage(value []byte) bool {
	_, rest, _ := bytes.Cut(value, []byte("\r\n"))
	return (value[0] == '>' || value[0] == '*') && bytes.HasPrefix(rest, []byte("$7\r\nmessage\r\n"))
}

// valueLength is the length of the first value in b, in either version of the protocol; 0: it is not whole yet.
func valueLength(b []byte) int {
	end := bytes.Index(b, []byte("\r\n"))
	if end < 0 {
		return 0
	}
	head := end + 2
	count := 0
	for _, d := range b[min(1, end):end] {
		if d < '0' || d > '9' { // a negative length is none, and what follows a line's first byte is no length
			count = 0
			break
		}
		count = 10*count + int(d-'0')
	}
	switch b[0] {
	case '$', '!', '=':
		if b[1] == '-' {
			return head
		}
		if len(b) < head+count+2 {
			return 0
		}
		return head + count + 2
	case '*', '>', '~':
	case '%':
		count *= 2
	case '|': // attributes of the value that follows
		count = 2*count + 1
	default:
		return head
	}
	for range count {
		n := valueLength(b[head:])
		if n == 0 {
			return 0
		}
		head += n
	}
	return head
}
