package redistest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// manualFailover is how long Redis tries a failover that it was asked for (its CLUSTER_MF_TIMEOUT), and a little more.
const manualFailover = 6 * time.Second

// all are the cluster's nodes, the masters of its beginning first.
func (c *Cluster) all() []*Server { return slices.Concat(c.Nodes, c.Replicas) }

// alive are the nodes that run.
func (c *Cluster) alive() []*Server {
	return slices.DeleteFunc(c.all(), func(s *Server) bool { return !s.proc.runs() })
}

// addReplicas gives each master n replicas and waits until each has its master's data and every node knows all.
func (c *Cluster) addReplicas(n int, o []Option) {
	c.tb.Helper()
	if n <= 0 {
		return
	}
	for _, master := range c.Nodes {
		for range n {
			replica := start(c.tb, true, append([]Option{Args(clusterArgs()...)}, o...)...)
			if err := meet(c.tb.Context(), replica.Addr, c.Addrs()); err != nil {
				c.tb.Fatalf("redistest: a replica meets the cluster: %v", err)
			}
			c.Replicas = append(c.Replicas, replica)
			id := c.id(master)
			// It says that it knows no such node until it has heard of it.
			await(c.tb, func(ctx context.Context) error {
				return at(replica.Addr, func(r *redis.Client) error { return r.ClusterReplicate(ctx, id).Err() })
			})
		}
	}
	c.AwaitReady()
	for i, replica := range c.Replicas {
		master := c.Nodes[i/n]
		replica.AwaitSync(master)
		// Who does not know whose replica it is gives it no vote in a failover.
		c.awaitView(func(nodes map[string]node) error {
			if got := nodes[c.id(replica)].master; got != c.id(master) {
				return fmt.Errorf("redistest: %s is held to be a replica of %q", replica.Addr, got)
			}
			return nil
		})
	}
}

// ReplicasOf are the running replicas of master, which must run, as it counts them itself.
func (c *Cluster) ReplicasOf(master *Server) (replicas []*Server) {
	c.tb.Helper()
	for _, s := range c.alive() {
		if s.follows(master) {
			replicas = append(replicas, s)
		}
	}
	return replicas
}

// Failover makes a replica of from the master of from's slots and from its replica, without loss (CLUSTER FAILOVER): clients are held
// for a moment and then sent on with MOVED. It returns the new master when every running node knows it.
func (c *Cluster) Failover(from *Server) (to *Server) {
	c.tb.Helper()
	c.owned("Failover")
	return c.failOver(from, "")
}

// FailoverByForce kills from and makes one of its replicas the master of its slots, with what that had received: writes that were on
// their way there are lost. It does not wait until the nodes notice the death, which takes them more than 15 s; a test may wait longer
// between its own Kill and this. It returns the new master when every running node knows it. A Restart of from makes it a replica.
func (c *Cluster) FailoverByForce(from *Server) (to *Server) {
	c.tb.Helper()
	c.owned("FailoverByForce")
	return c.failOver(from, "FORCE")
}

func (c *Cluster) failOver(from *Server, how string) (to *Server) {
	c.tb.Helper()
	for _, s := range c.alive() {
		if s.follows(from) {
			to = s
		}
	}
	if to == nil {
		c.tb.Fatalf("redistest: %s has no replica that could take its place: ask StartCluster for Replicas", from.Addr)
	}
	args := []any{"CLUSTER", "FAILOVER"}
	if how != "" {
		from.Kill()
		args = append(args, how)
	}
	// An election may be lost, and a hand-over may come too late. Asking again begins anew, so it is asked when Redis has given up.
	var asked time.Time
	await(c.tb, func(ctx context.Context) error {
		if to.leads() {
			return nil
		}
		if time.Since(asked) > manualFailover {
			if err := at(to.Addr, func(r *redis.Client) error { return r.Do(ctx, args...).Err() }); err != nil {
				return err
			}
			asked = time.Now()
		}
		return fmt.Errorf("redistest: the replica does not lead yet: %s", to.proc.lastWords())
	})
	c.awaitMaster(to, from)
	return to
}

// awaitMaster waits until every running node knows that to is a master with slots, and that from, if it runs, is none.
func (c *Cluster) awaitMaster(to, from *Server) {
	c.tb.Helper()
	id, old := c.id(to), ""
	if from.proc.runs() {
		old = c.id(from)
	}
	c.awaitView(func(nodes map[string]node) error {
		if !nodes[id].serves || nodes[old].serves {
			return fmt.Errorf("redistest: %s is not known for the new master", to.Addr)
		}
		return nil
	})
}

// node is one node as another sees it.
type node struct {
	master string // id of the master whose replica it is; empty or "-": none
	serves bool   // it is a master of some slots
}

// awaitView waits until ok has no error about what any running node knows of all nodes, by id.
func (c *Cluster) awaitView(ok func(nodes map[string]node) error) {
	c.tb.Helper()
	await(c.tb, func(ctx context.Context) error {
		for _, s := range c.alive() {
			err := at(s.Addr, func(r *redis.Client) error {
				text, err := r.ClusterNodes(ctx).Result()
				if err != nil {
					return err
				}
				if err := ok(view(text)); err != nil {
					return fmt.Errorf("%w by %s", err, s.Addr)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// view reads the answer of CLUSTER NODES.
func view(text string) map[string]node {
	nodes := map[string]node{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 8 { // id, address, flags, master, ping, pong, epoch, link, slots …
			nodes[f[0]] = node{master: f[3], serves: strings.Contains(f[2], "master") && len(f) > 8}
		}
	}
	return nodes
}

// meet introduces the node at addr to the others.
func meet(ctx context.Context, addr string, others []string) error {
	return at(addr, func(c *redis.Client) error {
		for _, other := range others {
			host, port, ok := strings.Cut(other, ":")
			if !ok {
				return fmt.Errorf("redistest: %q is no address", other)
			}
			if err := c.ClusterMeet(ctx, host, port).Err(); err != nil {
				return err
			}
		}
		return nil
	})
}

// await calls f until it returns nil, and ends the test with its last error when clusterTime is over.
func await(tb testing.TB, f func(ctx context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), clusterTime)
	defer cancel()
	tick := time.NewTicker(5 * pollEvery)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("redistest: not within %v: %v", clusterTime, err)
		case <-tick.C:
		}
	}
}
