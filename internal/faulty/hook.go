package faulty

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name Redis gives a script; nothing secret hangs on it
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/redistest"
)

// Install lets f strike the commands and pipelines that are sent through client, of a cluster's client those to each node. It
// cannot be taken back; after Close they pass. A node is named by the address its client has; a failover client's is
// "FailoverClient". Transactions pass.
//
// What is carried out a second time, late, or without acknowledgement is sent as a copy, once, and the client does not repeat it.
func (f *Faults) Install(client redis.UniversalClient) {
	redistest.EachNode(client, func(node redis.UniversalClient) {
		h := &hook{f: f}
		if c, ok := node.(*redis.Client); ok {
			h.node = c.Options().Addr
		}
		node.AddHook(h)
	})
}

// hook is f at the client of one node.
type hook struct {
	f    *Faults
	node string
}

var _ redis.Hook = (*hook)(nil)

// DialHook lets connections pass: Dialer is for those, since not all of the library's are made through the hooks.
func (*hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// What a command and what a pipeline as a whole may suffer.
var (
	wholeKinds   = []Kind{Refused, Reset, Timeout, AppliedReset, AppliedTimeout, Duplicated, Delayed, Reordered}
	commandKinds = append([]Kind{Reply}, wholeKinds...)
	replyKinds   = []Kind{Reply}
)

// ProcessHook strikes commands. The client writes the error into the command.
func (h *hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c := h.call(commandKinds, cmd)
		run := func(ctx context.Context) error { return next(ctx, cmd) }
		x := h.f.strike(c)
		if x == nil {
			return h.f.pass(ctx, h.node, run)
		}
		copied := &once{cmd.Clone()}
		return h.f.carry(ctx, x, h.node, run, func(ctx context.Context) error { return next(ctx, copied) })
	}
}

// ProcessPipelineHook strikes single commands of a pipeline with replies and the pipeline as a whole with everything else.
func (h *hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) > 0 && strings.EqualFold(cmds[0].Name(), "multi") {
			return next(ctx, cmds)
		}
		left := make([]redis.Cmder, 0, len(cmds))
		for _, cmd := range cmds {
			if x := h.f.strike(h.call(replyKinds, cmd)); x != nil {
				cmd.SetErr(x.err)
			} else {
				left = append(left, cmd)
			}
		}
		if len(left) > 0 {
			if err := h.send(ctx, left, next); err != nil && len(left) == len(cmds) {
				return err
			}
		}
		for _, cmd := range cmds { // a pipeline's error is that of its first command that has one
			if err := cmd.Err(); err != nil {
				return err
			}
		}
		return nil
	}
}

// send sends what is left of a pipeline.
func (h *hook) send(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
	run := func(ctx context.Context) error { return next(ctx, cmds) }
	x := h.f.strike(h.call(wholeKinds, cmds...))
	if x == nil {
		return h.f.pass(ctx, h.node, run)
	}
	copied := make([]redis.Cmder, 0, len(cmds))
	for _, cmd := range cmds {
		copied = append(copied, &once{cmd.Clone()})
	}
	sent := false
	err := h.f.carry(ctx, x, h.node, func(ctx context.Context) error {
		sent = true
		return run(ctx)
	}, func(ctx context.Context) error { return next(ctx, copied) })
	if !sent {
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
	}
	return err
}

// once is a copy that the client must not send again by itself.
type once struct{ redis.Cmder }

// NoRetry tells the client to send it once.
func (*once) NoRetry() bool { return true }

// call is what the rules see of commands that are sent together.
func (h *hook) call(suffers []Kind, cmds ...redis.Cmder) *call {
	c := &call{node: h.node, suffers: suffers, setUp: true}
	for _, cmd := range cmds {
		c.names = append(c.names, namesOf(cmd)...)
		c.setUp = c.setUp && redistest.SetsUp(cmd)
	}
	c.isAbout = func(part string) bool {
		return slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool {
			return slices.ContainsFunc(cmd.Args(), func(arg any) bool { return strings.Contains(text(arg), part) })
		})
	}
	return c
}

// namesOf are the command's names: of a script first its own, since that tells more.
func namesOf(cmd redis.Cmder) []string {
	name, args := strings.ToLower(cmd.Name()), cmd.Args()
	switch {
	case len(args) < 2:
	case strings.HasPrefix(name, "evalsha"):
		return []string{text(args[1]), name}
	case strings.HasPrefix(name, "eval"):
		sum := sha1.Sum([]byte(text(args[1]))) //nolint:gosec // a name, not a secret
		return []string{hex.EncodeToString(sum[:]), name}
	}
	return []string{name}
}

// text is an argument as it is sent, as far as it can hold words.
func text(arg any) string {
	switch v := arg.(type) {
	case string:
		return v
	case *string:
		return *v
	case []byte:
		return string(v)
	default:
		return fmt.Sprint(v)
	}
}
