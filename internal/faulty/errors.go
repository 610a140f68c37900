package faulty

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// ErrInjected is matched by every error of the network that this package makes, and is what Panic panics with.
var ErrInjected = errors.New("faulty: injected")

// replyError is an error reply. Redis's clients know one by this method and tell its kind by its text.
type replyError string

func (e replyError) Error() string { return string(e) }

// RedisError marks a reply of the server.
func (replyError) RedisError() {}

func refused(node string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: address(node), Err: fmt.Errorf("%w: %w", ErrInjected, syscall.ECONNREFUSED)}
}

func reset(node string) error {
	return &net.OpError{Op: "read", Net: "tcp", Addr: address(node), Err: fmt.Errorf("%w: %w", ErrInjected, syscall.ECONNRESET)}
}

// late is what a call gets whose time is over: its context's error, or that of a read's deadline.
func late(ctx context.Context, node string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return &net.OpError{Op: "read", Net: "tcp", Addr: address(node), Err: deadline{}}
}

// deadline is os.ErrDeadlineExceeded, and says whose it is.
type deadline struct{}

func (deadline) Error() string   { return ErrInjected.Error() + ": " + os.ErrDeadlineExceeded.Error() }
func (deadline) Timeout() bool   { return true }
func (deadline) Temporary() bool { return true }
func (deadline) Unwrap() []error { return []error{ErrInjected, os.ErrDeadlineExceeded} }

// address is a server's host:port as net.Addr.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
