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

// maxEnds bounds the keys whose end is owed: as many as may be queued for Redis. Their strings are shared with that queue.
const maxEnds = maxPending

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
//
// The ends of Updates are owed in the same way, and for as long, where their keys may be pending in Redis though the write is over: the end was
// not carried out, or what is carried out after it is the begin, or a renewal, that hung.
//
//  1. A's Update begins; Redis hangs; A writes and ends, which Redis is not asked to do
//  2. Redis goes on, and begins: all reads of the key are short-lived, until PendTime has passed, for a write that is over
//
// Of more than maxEnds keys the newest are kept.
type owed struct {
	mu    sync.Mutex
	debts []debt
	ends  []end
}

// debt is one lease that is owed.
type debt struct {
	lease layers.Lease
	due   time.Time
	paid  int // how often it was given back
}

// end is the end of one Update, for those of its keys of which it is owed.
type end struct {
	op   layers.Token
	ids  []string
	due  time.Time
	paid int
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

// addEnd adds an end, of which no other that is owed has the same keys.
func (o *owed) addEnd(e end) {
	if len(e.ids) == 0 || e.paid > len(repayments) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = append(o.ends, e)
	n := 0
	for i := len(o.ends) - 1; i >= 0; i-- {
		if ids := o.ends[i].ids; n+len(ids) > maxEnds {
			o.ends[i].ids = ids[n+len(ids)-maxEnds:]
			clear(o.ends[:i])
			o.ends = o.ends[i:]
			return
		}
		n += len(o.ends[i].ids)
	}
}

// takeEnds removes and returns what is due.
func (o *owed) takeEnds(now time.Time) (due []end) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = slices.DeleteFunc(o.ends, func(e end) bool {
		if e.due.After(now) {
			return false
		}
		due = append(due, e)
		return true
	})
	return due
}

// repay gives back what is owed and due by now, as far as Redis answers.
func (c *Cache[K, V]) repay(ctx context.Context, now time.Time) {
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
	for _, e := range c.owed.takeEnds(now) {
		c.endAgain(ctx, now, e)
	}
}

// repayAll gives back once whatever is owed, due or not: nobody will later.
func (c *Cache[K, V]) repayAll(ctx context.Context) {
	c.repay(ctx, time.Now().Add(repayments[len(repayments)-1]))
}

// endAgain sends an end that is owed, a call for so many keys as one is good for. What fails is owed from the start.
func (c *Cache[K, V]) endAgain(ctx context.Context, now time.Time, e end) {
	away, sent := e, end{op: e.op, paid: e.paid + 1}
	away.ids = nil
	failed := end{op: e.op}
	if e.paid < len(repayments) {
		sent.due = now.Add(repayments[e.paid])
	}
	var here []string
	for _, id := range e.ids {
		if c.shared.Reachable(id) {
			here = append(here, id)
		} else {
			away.ids = append(away.ids, id)
		}
	}
	c.loss.recent.Note(here...)
	for some := range slices.Chunk(here, maxScriptKeys) {
		for i, r := range c.shared.Invalidate(ctx, layers.End, e.op, some...) {
			if r.Err == nil {
				sent.ids = append(sent.ids, some[i])
				continue
			}
			failed.ids = append(failed.ids, some[i])
			c.sharedFailed("replay", r.Err)
		}
	}
	c.owed.addEnd(away)
	c.owed.addEnd(failed)
	c.owed.addEnd(sent)
}
