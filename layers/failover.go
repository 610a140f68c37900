package layers

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A failover is noticed by who answers. Each probe asks its master for that (INFO): another process, another history of writes or another
// role than before means that writes which the master had acknowledged may be gone. So does, in Cluster, a master that was not there
// before, for it may have been a replica; a generation that Redis has lost, that has gone back, or that was renewed later than Redis knows (a
// flush, an eviction, an old copy of the data), of which the process that finds it tells the others; and, where Redis refuses INFO, a master
// that is reachable again.
//
// What is too much does no harm but a reload: a cluster that grows, the first replica that a server is given, an evicted generation.
//
// Which keys a lost write was about nobody knows, nor, in Cluster, which of them the master had: all spaces are told, for all their keys.

const (
	// maxReturns is how often a master may answer as a server that it was before: behind a proxy several servers answer by turns, and
	// each turn looks like a failover. Chosen; not tuned.
	maxReturns = 5
	// maxFormer bounds the servers remembered for that.
	maxFormer = 8
)

// identity is who answers at a master's address: the process, the history of its writes and its role. Empty: not known.
type identity string

// identityOf reads two answers of INFO, of the sections server and replication. Managed servers leave some of it out, or give the same for
// ever; the history alone would do for a plain one, since a restart and a promotion begin a new one.
func identityOf(server, replication string) identity {
	parts := []string{infoField(server, "run_id"), infoField(replication, "master_replid"), infoField(replication, "role")}
	if parts[0] == "" && parts[1] == "" {
		return ""
	}
	return identity(strings.Join(parts, "|"))
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// recognition is what is known of who answers at a master's address.
type recognition struct {
	known   identity
	former  []identity // that it was before, the newest last
	returns int        // to one of them
	refused time.Time  // when INFO was refused last
}

// meet takes in who answers now, and reports whether what was acknowledged before may be lost. One that is not known says nothing.
func (r *recognition) meet(id identity) (lost bool) {
	old := r.known
	if id == "" || id == old {
		return false
	}
	r.known = id
	if old == "" {
		return false
	}
	if slices.Contains(r.former, id) {
		r.returns++
	}
	r.former = append(r.former, old)
	if len(r.former) > maxFormer {
		r.former = slices.Delete(r.former, 0, 1)
	}
	return !r.many()
}

// many reports whether several servers answer by turns: then nothing follows from who does.
func (r *recognition) many() bool { return r.returns > maxReturns }

// ask sends cmds to m, with the question who answers. That is taken in before m is called reachable again: a reader that comes then
// finds the keys pending that a failover took back.
func (b *bus) ask(ctx context.Context, m *master, cmds ...redis.Cmder) error {
	if !b.asksWho(m) {
		return m.do(ctx, cmds...)
	}
	server, replication := redis.NewStringCmd(ctx, "info", "server"), redis.NewStringCmd(ctx, "info", "replication")
	return m.doThen(ctx, func() { b.answered(m, server, replication) }, append(cmds, server, replication)...)
}

// isNew reports whether m is a master of a cluster that was none in the rounds before, of which there was one.
func (b *bus) isNew(m *master) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.r.cluster != nil && b.met && b.pulses[m.id] == nil
}

// asksWho reports whether m is to be asked who answers: it is one server, and did not refuse that a moment ago.
func (b *bus) asksWho(m *master) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pulses[m.id]
	return m.node.Load() != nil && p != nil && !p.who.many() && time.Since(p.who.refused) >= refusedPause
}

// answered takes in the answer to the question who answers.
func (b *bus) answered(m *master, server, replication *redis.StringCmd) {
	err := cmp.Or(server.Err(), replication.Err())
	if outcomeOf(err) != wasAnswered {
		return // the connection broke in the middle
	}
	b.mu.Lock()
	p := b.pulses[m.id]
	if p == nil {
		b.mu.Unlock()
		return
	}
	var lost, many, first bool
	if err == nil {
		lost = p.who.meet(identityOf(server.Val(), replication.Val()))
		many = p.who.many()
		b.infoRefused = false
	} else {
		p.who.refused = time.Now()
		first = !b.infoRefused
		b.infoRefused = true
	}
	b.mu.Unlock()
	switch {
	case first:
		b.r.log.Warn("tiercache: Redis refuses INFO, a failover is noticed only where its master was unreachable", "master", m.id, "error", err)
	case many:
		b.r.log.Warn("tiercache: several servers answer at one address, failovers there are not noticed", "master", m.id)
	case lost:
		b.lose("another server answers in the master's place, or it was restarted", m)
	}
}

// lose tells every ear that what Redis had acknowledged may be lost.
func (b *bus) lose(why string, m *master) {
	b.r.log.Warn("tiercache: failover: "+why+"; recent invalidations are repeated", "master", m.id)
	for _, e := range b.open() {
		e.lose(0)
	}
}

// suspects takes the master that is reachable again without being known, if there is one.
func (b *bus) suspects() (m *master) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, b.suspect = b.suspect, nil
	return m
}

// lose tells the space that what Redis had acknowledged may be lost, of so long a time if that is known, and makes it deaf for a moment: what
// memory holds by now may have been read from the server that has lost it.
func (e *ear) lose(back time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loseLocked(back)
}

// loseLocked calls Lost before the marks of before are void ("pending before bump"):
//
//  1. The failover is noticed, and all marks taken before are void.
//  2. A reader takes a mark, sees that its key is not pending, and asks Redis for it: the old value.
//  3. The recent keys become pending. The replay deletes the value in Redis; its event is this process's own, and ignored.
//  4. The reader keeps the old value under a mark that is good.
func (e *ear) loseLocked(back time.Duration) {
	if e.left {
		return
	}
	if e.events.Lost != nil {
		e.events.Lost(back)
	}
	e.doubtLocked()
}
