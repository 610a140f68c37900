// Package borrowed is how the rooms use a go-redis client that stays its caller's: which ones they take, commands that are sent once, and a
// subscription whose loss is noticed when it happens.
package borrowed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// DialTimeout bounds the making of a subscription's connection, and again its greeting. Chosen; not tuned.
const DialTimeout = time.Second

// errUsed is why a subscription does not connect a second time.
var errUsed = errors.New("a subscription connects once: make a new one")

// CheckClient says why rdb is not taken by the function of that name, nil if it is: a nil client; a Ring (its shards lose keys when one fails);
// replica routing (what was changed a moment ago could be read as it was before).
func CheckClient(function string, rdb redis.UniversalClient) error {
	if v := reflect.ValueOf(rdb); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return fmt.Errorf("%s: nil client", function)
	}
	switch c := rdb.(type) {
	case *redis.Ring:
		return fmt.Errorf("%s: a redis.Ring is not supported: a key changes its shard when one fails; use a redis.ClusterClient", function)
	case *redis.ClusterClient:
		if o := c.Options(); o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			return fmt.Errorf("%s: ReadOnly, RouteByLatency and RouteRandomly are not supported: a replica may answer what is not true any more", function)
		}
	}
	return nil
}

// CheckPrefix says what is wrong with a prefix of keys and channels that the function of that name was given, nil if nothing is.
func CheckPrefix(function, prefix string) error {
	if i := strings.IndexFunc(prefix, func(c rune) bool { return c <= ' ' || c == '{' || c == '}' || c == 0x7f }); i >= 0 {
		return fmt.Errorf("%s: Prefix %q holds a brace, a space or a control byte", function, prefix)
	}
	return nil
}

// Once is a command that the client must not send a second time by itself: a reply that is late is not a command that was not
// run. One such command in a pipeline keeps the retries off all of it.
type Once struct{ redis.Cmder }

// NoRetry tells the client to send it once.
func (Once) NoRetry() bool { return true }

// Subscribe returns a PubSub that connects once, to from's server, and never again: the first error is the loss. ctx ends the connection.
// done frees what it has and is to be called.
//
// It belongs to a client of its own with the same options, for two reasons. The caller's time-outs may be long, or none, and a greeting
// that is never answered must not outlive ctx. And the PubSub must not reconnect by itself: it does so before it returns the error, so
// that the loss would be noticed only when it is over.
func Subscribe(ctx context.Context, from *redis.Client) (ps *redis.PubSub, done func()) {
	o := *from.Options()
	dial := o.Dialer
	var used atomic.Bool
	o.Dialer = func(dctx context.Context, network, addr string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errUsed
		}
		conn, err := dial(dctx, network, addr)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	}
	o.MaxRetries, o.DialerRetries = -1, 1
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = DialTimeout, DialTimeout, DialTimeout, DialTimeout
	o.ContextTimeoutEnabled = true
	o.PoolSize, o.MinIdleConns, o.PipelinePoolSize = 1, 0, -1
	o.Limiter, o.PushNotificationProcessor = nil, nil
	o.ClientSideCache, o.ClientSideCacheConfig = nil, nil
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	client := redis.NewClient(&o)
	ps = client.Subscribe(ctx)
	return ps, func() { _ = ps.Close(); _ = client.Close() }
}
