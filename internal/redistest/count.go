package redistest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Counter counts what a client sends to Redis: commands by name and round trips, where a pipeline is one round trip. What a
// client sends to set up a connection is not counted; a command that is sent again counts again in a cluster (redirections), but
// the client's own retries within one node do not show. It may be read while the client is used.
type Counter struct {
	mu       sync.Mutex
	trips    int
	commands map[string]int
}

var _ redis.Hook = (*Counter)(nil)

// Count returns a counter of everything that is sent through client from now on. Of a cluster's client it counts at the clients of
// the nodes, so that a pipeline that is spread over three masters is three round trips.
func Count(client redis.UniversalClient) *Counter {
	c := &Counter{commands: map[string]int{}}
	EachNode(client, func(node redis.UniversalClient) { node.AddHook(c) })
	c.Reset()
	return c
}

// EachNode calls f with client itself or, of a cluster's client, with the client of each node: those there are and, from then on,
// each new one before it is used. For nodes that are found while EachNode runs, f may be called on another goroutine.
func EachNode(client redis.UniversalClient, f func(node redis.UniversalClient)) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		f(client)
		return
	}
	// A node that is found while we look is seen twice: once as new, once in the list.
	var mu sync.Mutex
	seen := map[*redis.Client]bool{}
	once := func(node *redis.Client) {
		mu.Lock()
		defer mu.Unlock()
		if !seen[node] {
			seen[node] = true
			f(node)
		}
	}
	cluster.OnNewNode(once)
	// An error says that the cluster cannot be reached: then no node has a client yet, and each will be new.
	_ = cluster.ForEachShard(context.Background(), func(_ context.Context, node *redis.Client) error {
		once(node)
		return nil
	})
}

// Trips is the number of round trips so far.
func (c *Counter) Trips() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trips
}

// Sent is how often the commands of these names (in lower case) were sent so far; without names, how many commands in all.
func (c *Counter) Sent(names ...string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := 0
	for name, n := range c.commands {
		if len(names) == 0 || slices.Contains(names, name) {
			sum += n
		}
	}
	return sum
}

// Commands is how often each command was sent so far, by its name in lower case.
func (c *Counter) Commands() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.commands)
}

// Reset starts the count again at zero.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trips = 0
	clear(c.commands)
}

// String shows the count for the message of a failed test.
func (c *Counter) String() string {
	return fmt.Sprintf("%d round trips: %v", c.Trips(), c.Commands())
}

// DialHook does nothing: connections are not counted.
func (*Counter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook counts a command that is sent alone.
func (c *Counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.add(cmd)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook counts the commands of a pipeline and one round trip.
func (c *Counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.add(cmds...)
		return next(ctx, cmds)
	}
}

func (c *Counter) add(cmds ...redis.Cmder) {
	if !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !SetsUp(cmd) }) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trips++
	for _, cmd := range cmds {
		c.commands[cmd.Name()]++
	}
}

// SetsUp reports whether go-redis sends cmd by itself: when it opens a connection, or to learn a cluster's layout.
func SetsUp(cmd redis.Cmder) bool {
	switch strings.ToLower(cmd.Name()) {
	case "hello", "auth", "client", "select", "readonly", "command":
		return true
	case "cluster":
		args := cmd.Args()
		if len(args) < 2 {
			return false
		}
		sub := strings.ToLower(fmt.Sprint(args[1]))
		return sub == "slots" || sub == "shards"
	}
	return false
}
