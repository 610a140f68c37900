package tiercache

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tiercache/tiercache/layers"
)

// maxOwed bounds the leases that are owed. Chosen; not tuned.
const maxOwed = 1024

// repayments are how long after it was given back a lease is given back again. Chosen; not tuned: a call that hung is either sent within a few
// seconds of Redis's return, or its connection is gone.
var repayments = [...]time.Duration{time.Second, 3 * time.Second}

// owed are leases that this process may have, or may still be granted, without having been told. What Redis was sent before it hung it still
// does when it goes on, and what a client could not send it may send then:
//
//  1. A asks for the lease; Redis hangs; A goes on without it
//  2. Redis goes on, and grants A the lease
//  3. B asks for it: held, until it runs out, by nobody
//
// So they are given back as soon as Redis answers again; and a little later again, since A's question may only now be on its way:
//
//  1. Redis answers again; A gives the lease back, which nobody has
//  2. A's call, which had hung in the greeting of a new connection, is sent: Redis grants A the lease
//
// Of more than maxOwed the newest are kept: those of the others run out. A lease that is not this claim's is not touched by it.
type owed struct {
	mu    sync.Mutex
	debts []debt
}

// debt is one lease that is owed.
type debt struct {
	lease layers.Lease
	due   time.Time
	paid  int // how often it was given back
}

// add takes the place of what was noted of the same lease: one that could not be given back, though its repeat was noted already, is owed once.
func (o *owed) add(d debt) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.debts = slices.DeleteFunc(o.debts, func(other debt) bool { return other.lease.ID == d.lease.ID && other.lease.Token == d.lease.Token })
	o.debts = append(o.debts, d)
	o.debts = o.debts[max(len(o.debts)-maxOwed, 0):]
}

// addPaid adds a lease that is about to be given back for the paid-th time, unless that is the last.
func (o *owed) addPaid(now time.Time, paid int, l layers.Lease) {
	if paid <= len(repayments) {
		o.add(debt{lease: l, due: now.Add(repayments[paid-1]), paid: paid})
	}
}

// take removes and returns what is due.
func (o *owed) take(now time.Time) (due []debt) {
	o.mu.Lock()
	defer o.mu.Unlock()
	later := o.debts[:0]
	for _, d := range o.debts {
		if d.due.After(now) {
			later = append(later, d)
		} else {
			due = append(due, d)
		}
	}
	o.debts = later
	return due
}

// repay gives back what is owed and due, as far as Redis answers.
func (c *Cache[K, V]) repay(ctx context.Context) {
	now := time.Now()
	var leases []layers.Lease
	for _, d := range c.owed.take(now) {
		if !c.shared.Reachable(d.lease.ID) {
			c.owed.add(d)
			continue
		}
		leases = append(leases, d.lease)
		c.owed.addPaid(now, d.paid+1, d.lease)
	}
	if len(leases) > 0 {
		c.giveBack(ctx, false, leases)
	}
}
