package redistest

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	masters     = 3
	slots       = 16384
	clusterTime = 60 * time.Second // what servers do among themselves; chosen, not tuned: it ends what can no longer succeed
)

// Cluster is three masters that share all slots between them, without replicas unless Replicas asked for some. A dead master takes
// its own slots with it and no others, until a replica has taken its place (Failover, FailoverByForce).
type Cluster struct {
	Nodes    []*Server // node i starts as the master of the i-th third of the slots
	Replicas []*Server // those of Nodes[0] first, then those of Nodes[1] …; who leads and who follows changes with each failover

	tb testing.TB
}

// Replicas gives each master of StartCluster n replicas, which StartCluster waits for.
func Replicas(n int) Option {
	return func(s *settings) { s.replicas = n }
}

// StartCluster returns a cluster of the test's own, ready for use; it is killed when the test ends.
// Without the binary the test is skipped.
func StartCluster(tb testing.TB, o ...Option) *Cluster {
	tb.Helper()
	need(tb)
	c := &Cluster{tb: tb}
	for range masters {
		c.Nodes = append(c.Nodes, start(tb, true, append([]Option{Args(clusterArgs()...)}, o...)...))
	}
	if err := form(c.Addrs()); err != nil {
		tb.Fatalf("redistest: form a cluster: %v", err)
	}
	c.addReplicas(settingsOf(o).replicas, o)
	return c
}

// SharedCluster returns the cluster that all tests of this binary share. It is started by the first who asks and ended by Main.
// Without the binary the test is skipped.
func SharedCluster(tb testing.TB) *Cluster {
	tb.Helper()
	need(tb)
	fleet.mu.Lock()
	defer fleet.mu.Unlock()
	if fleet.nodes == nil {
		if err := fleet.startCluster(); err != nil {
			tb.Fatalf("redistest: start the shared cluster: %v", err)
		}
	}
	c := &Cluster{tb: tb}
	for _, p := range fleet.nodes {
		c.Nodes = append(c.Nodes, &Server{Addr: p.addr(), tb: tb, proc: p, shared: true})
	}
	return c
}

func (f *servers) startCluster() error {
	var nodes []*process
	var addrs []string
	err := func() error {
		for range masters {
			dir, err := f.dir()
			if err != nil {
				return err
			}
			p, err := launch(dir, true, clusterArgs()...)
			if err != nil {
				return err
			}
			nodes, addrs = append(nodes, p), append(addrs, p.addr())
		}
		return form(addrs)
	}()
	if err != nil {
		for _, p := range nodes {
			p.kill()
		}
		return err
	}
	f.nodes = nodes
	return nil
}

// clusterArgs make a server a node. The time-out is long, so that a slow machine never makes a node look dead to another; one dead
// master does not stop the rest.
func clusterArgs() []string {
	return []string{
		"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
		"--cluster-node-timeout", "15000", "--cluster-require-full-coverage", "no",
		"--repl-diskless-sync-delay", "0", // a replica's first copy does not wait for company
	}
}

// form makes one cluster of the nodes at addrs and waits until every node says so.
func form(addrs []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), clusterTime)
	defer cancel()
	for i, addr := range addrs {
		err := at(addr, func(c *redis.Client) error {
			from, to := i*slots/len(addrs), (i+1)*slots/len(addrs)-1
			// Nodes that meet with equal epochs settle it between them, later; distinct ones settle nothing while tests run.
			if err := c.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
				return err
			}
			// go-redis spells the range out as single slots, which servers older than ADDSLOTSRANGE understand too.
			return c.ClusterAddSlotsRange(ctx, from, to).Err()
		})
		if err != nil {
			return err
		}
		// Each meets all before it: waiting until two nodes hear of each other by gossip takes seconds.
		if err := meet(ctx, addr, addrs[:i]); err != nil {
			return err
		}
	}
	return awaitCluster(ctx, addrs)
}

// awaitCluster polls until every node counts itself to a cluster that is well and knows the owner of every slot.
func awaitCluster(ctx context.Context, addrs []string) error {
	tick := time.NewTicker(5 * pollEvery)
	defer tick.Stop()
	for {
		ready, state := 0, ""
		for _, addr := range addrs {
			err := at(addr, func(c *redis.Client) error {
				info, err := c.ClusterInfo(ctx).Result()
				state = info
				if err == nil && strings.Contains(info, "cluster_state:ok") &&
					strings.Contains(info, "cluster_slots_ok:"+strconv.Itoa(slots)) &&
					strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(len(addrs))) {
					ready++
				}
				return err
			})
			if err != nil {
				state = err.Error()
			}
		}
		if ready == len(addrs) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("redistest: %d of %d nodes are ready after %v; the last one says: %s", ready, len(addrs), clusterTime, state)
		case <-tick.C:
		}
	}
}

// at calls f with a client of the one node at addr.
func at(addr string, f func(*redis.Client) error) error {
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close() //nolint:errcheck // nothing is under way any more
	return f(c)
}

// Addrs are the nodes' addresses.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, 0, len(c.Nodes)+len(c.Replicas))
	for _, n := range c.all() {
		addrs = append(addrs, n.Addr)
	}
	return addrs
}

// Client returns a client of c with the options of go-redis, after each set was applied to them; it is closed when the test ends.
func (c *Cluster) Client(tb testing.TB, set ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	tb.Helper()
	o := &redis.ClusterOptions{Addrs: c.Addrs()}
	for _, f := range set {
		f(o)
	}
	client := redis.NewClusterClient(o)
	tb.Cleanup(func() { _ = client.Close() }) // an error says that the test has closed it already
	return client
}

// AwaitReady returns when every node says that the cluster is well: after a Restart, for instance.
func (c *Cluster) AwaitReady() {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), clusterTime)
	defer cancel()
	if err := awaitCluster(ctx, c.Addrs()); err != nil {
		c.tb.Fatal(err)
	}
}

// Slot is the slot of key.
func (c *Cluster) Slot(key string) int {
	c.tb.Helper()
	var slot int64
	c.on(c.alive()[0], func(ctx context.Context, r *redis.Client) (err error) {
		slot, err = r.ClusterKeySlot(ctx, key).Result()
		return err
	})
	return int(slot)
}

// Owner is the node that serves slot, as the first node that answers knows it.
func (c *Cluster) Owner(slot int) *Server {
	c.tb.Helper()
	var last error
	for _, n := range c.all() {
		var all []redis.ClusterSlot
		last = at(n.Addr, func(r *redis.Client) (err error) {
			all, err = layout(c.tb.Context(), r)
			return err
		})
		if owner := c.owner(all, slot); owner != nil {
			return owner
		}
	}
	c.tb.Fatalf("redistest: nobody serves slot %d: %v", slot, last)
	return nil
}

// layout is the node's view of who serves which slots.
func layout(ctx context.Context, r *redis.Client) ([]redis.ClusterSlot, error) {
	return r.ClusterSlots(ctx).Result() //nolint:staticcheck // its successor is not known to servers older than Redis 7
}

func (c *Cluster) owner(all []redis.ClusterSlot, slot int) *Server {
	for _, s := range all {
		if slot < s.Start || slot > s.End || len(s.Nodes) == 0 {
			continue
		}
		for _, n := range c.all() {
			if n.Addr == s.Nodes[0].Addr {
				return n
			}
		}
	}
	return nil
}

// Key returns a string that begins with prefix and whose slot node serves; where prefix has a hash tag, it must be one of node's.
func (c *Cluster) Key(prefix string, node *Server) string {
	c.tb.Helper()
	found := ""
	c.on(node, func(ctx context.Context, r *redis.Client) error {
		all, err := layout(ctx, r)
		if err != nil {
			return err
		}
		for i := range 1000 {
			key := prefix + strconv.Itoa(i)
			slot, err := r.ClusterKeySlot(ctx, key).Result()
			if err != nil {
				return err
			}
			if c.owner(all, int(slot)) == node {
				found = key
				return nil
			}
		}
		return fmt.Errorf("redistest: no key with prefix %q lies here", prefix)
	})
	return found
}

// on calls f with a client of the node n and ends the test at an error.
func (c *Cluster) on(n *Server, f func(context.Context, *redis.Client) error) {
	c.tb.Helper()
	if err := at(n.Addr, func(r *redis.Client) error { return f(c.tb.Context(), r) }); err != nil {
		c.tb.Fatalf("redistest: node %s: %v", n.Addr, err)
	}
}

// owned ends the test unless c is a cluster of its own.
func (c *Cluster) owned(method string) {
	c.tb.Helper()
	if c.Nodes[0].shared {
		c.tb.Fatalf("redistest: %s on the shared cluster: take one of your own with StartCluster", method)
	}
}

// MoveSlot moves slot with all its keys to another node, as resharding does. Clients that knew the old owner are answered MOVED.
func (c *Cluster) MoveSlot(slot int, from, to *Server) {
	c.tb.Helper()
	c.BeginMove(slot, from, to)
	c.MoveKeys(slot, from, to)
	c.EndMove(slot, from, to)
}

// BeginMove opens the migration of slot and moves no key yet: from answers for the keys it has and sends who asks for another
// with ASK to the new node; a script over two keys of which one is missing is answered TRYAGAIN.
func (c *Cluster) BeginMove(slot int, from, to *Server) {
	c.tb.Helper()
	c.owned("BeginMove")
	c.on(to, func(ctx context.Context, r *redis.Client) error {
		return r.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.id(from)).Err()
	})
	c.on(from, func(ctx context.Context, r *redis.Client) error {
		return r.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.id(to)).Err()
	})
}

// MoveKeys moves the given keys of slot, or all of them if none is given, between two nodes for which BeginMove was called.
func (c *Cluster) MoveKeys(slot int, from, to *Server, keys ...string) {
	c.tb.Helper()
	c.owned("MoveKeys")
	host, port, err := net.SplitHostPort(to.Addr)
	if err != nil {
		c.tb.Fatal(err)
	}
	all := len(keys) == 0
	c.on(from, func(ctx context.Context, r *redis.Client) error {
		for {
			if all {
				if keys, err = r.ClusterGetKeysInSlot(ctx, slot, 1000).Result(); err != nil || len(keys) == 0 {
					return err
				}
			}
			for _, key := range keys {
				if err := r.Migrate(ctx, host, port, key, 0, 10*time.Second).Err(); err != nil {
					return err
				}
			}
			if !all {
				return nil
			}
		}
	})
}

// EndMove gives slot to the new node and tells every node; the new one first, so that somebody always serves it.
func (c *Cluster) EndMove(slot int, from, to *Server) {
	c.tb.Helper()
	c.owned("EndMove")
	id := c.id(to)
	tell := func(n *Server) {
		c.on(n, func(ctx context.Context, r *redis.Client) error {
			return r.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", id).Err()
		})
	}
	tell(to)
	tell(from)
	for _, n := range c.all() {
		if n != to && n != from && n.leads() {
			tell(n)
		}
	}
}

// id is the name by which the nodes know n.
func (c *Cluster) id(n *Server) (id string) {
	c.tb.Helper()
	c.on(n, func(ctx context.Context, r *redis.Client) (err error) {
		id, err = r.Do(ctx, "CLUSTER", "MYID").Text()
		return err
	})
	return id
}
